"""`OlmoModel`: the Llama model with layer norm."""

from __future__ import annotations

from typing import Literal

from puna.pipelines.architectures.llama3 import LlamaModelBase

__all__ = ["OlmoModel"]


class OlmoModel(LlamaModelBase):
    """OLMo pipeline model. The arguments are those of `LlamaModelBase`."""

    norm_method: Literal["rms_norm"] | Literal["layer_norm"] = "layer_norm"
    """Normalization layer."""
