"""`MistralModel`: the Llama model with Mistral's configuration."""

from __future__ import annotations

from puna.pipelines.architectures.llama3 import Llama3Model
from puna.pipelines.architectures.mistral.model_config import MistralConfig

__all__ = ["MistralModel"]


class MistralModel(Llama3Model):
    """Mistral pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = MistralConfig
