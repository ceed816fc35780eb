"""`SmolLM3Model`: the Llama model with SmolLM3's configuration."""

from __future__ import annotations

from puna.pipelines.architectures.llama3 import Llama3Model
from puna.pipelines.architectures.smollm3.model_config import SmolLM3Config

__all__ = ["SmolLM3Model"]


class SmolLM3Model(Llama3Model):
    """SmolLM3 pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = SmolLM3Config
