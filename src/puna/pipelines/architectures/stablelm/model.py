"""`StableLmModel`: the Llama model with StableLM's configuration."""

from __future__ import annotations

from typing import Literal

from puna.pipelines.architectures.llama3 import Llama3Model
from puna.pipelines.architectures.stablelm.model_config import StableLmConfig

__all__ = ["StableLmModel"]


class StableLmModel(Llama3Model):
    """StableLM pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = StableLmConfig
    norm_method: Literal["rms_norm"] | Literal["layer_norm"] = "layer_norm"
    """Normalization layer."""
