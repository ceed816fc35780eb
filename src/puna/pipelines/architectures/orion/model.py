"""`OrionModel`: the Llama model with Orion's configuration."""

from __future__ import annotations

from typing import Literal

from puna.pipelines.architectures.llama3 import Llama3Model
from puna.pipelines.architectures.orion.model_config import OrionConfig

__all__ = ["OrionModel"]


class OrionModel(Llama3Model):
    """Orion pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = OrionConfig
    norm_method: Literal["rms_norm"] | Literal["layer_norm"] = "layer_norm"
    """Normalization layer."""
