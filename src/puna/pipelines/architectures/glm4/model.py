"""`Glm4Model`, `GlmModel`: the Llama model with the configurations of GLM-4."""

from __future__ import annotations

from puna.pipelines.architectures.glm4.model_config import Glm4Config, GlmConfig
from puna.pipelines.architectures.llama3 import Llama3Model

__all__ = ["Glm4Model", "GlmModel"]


class GlmModel(Llama3Model):
    """GLM-4 pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = GlmConfig


class Glm4Model(Llama3Model):
    """GLM-4-0414 pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = Glm4Config
