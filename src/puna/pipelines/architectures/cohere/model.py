"""`Cohere2Model`, `CohereModel`: the Llama model with the configurations of Command R and R7B."""

from __future__ import annotations

from typing import Literal

from puna.pipelines.architectures.cohere.model_config import Cohere2Config, CohereConfig
from puna.pipelines.architectures.llama3 import Llama3Model

__all__ = ["Cohere2Model", "CohereModel"]


class CohereModel(Llama3Model):
    """Command R pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = CohereConfig
    norm_method: Literal["rms_norm"] | Literal["layer_norm"] = "layer_norm"
    """Normalization layer."""


class Cohere2Model(Llama3Model):
    """Command R7B pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = Cohere2Config
    norm_method: Literal["rms_norm"] | Literal["layer_norm"] = "layer_norm"
    """Normalization layer."""
