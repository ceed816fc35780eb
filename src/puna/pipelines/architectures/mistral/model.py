"""`MistralModel`: the Llama model with Mistral's configuration."""

from __future__ import annotations

from puna.pipelines.architectures.llama3 import Llama3Model
from puna.pipelines.architectures.mistral.model_config import MinistralConfig, MistralConfig

__all__ = ["MinistralModel", "MistralModel"]


class MistralModel(Llama3Model):
    """Mistral pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = MistralConfig


class MinistralModel(Llama3Model):
    """Ministral pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = MinistralConfig
