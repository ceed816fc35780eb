"""`Qwen3Model`: the Llama model with Qwen3's configuration."""

from __future__ import annotations

from puna.pipelines.architectures.llama3 import Llama3Model
from puna.pipelines.architectures.qwen3.model_config import Qwen3Config

__all__ = ["Qwen3Model"]


class Qwen3Model(Llama3Model):
    """Qwen3 pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = Qwen3Config
