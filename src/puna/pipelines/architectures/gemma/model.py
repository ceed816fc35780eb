"""`Gemma2Model`, `Gemma3Model`, `GemmaModel`: the Llama model with the configurations of Gemma."""

from __future__ import annotations

from puna.pipelines.architectures.gemma.model_config import Gemma2Config, Gemma3Config, GemmaConfig
from puna.pipelines.architectures.llama3 import Llama3Model

__all__ = ["Gemma2Model", "Gemma3Model", "GemmaModel"]


class GemmaModel(Llama3Model):
    """Gemma pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = GemmaConfig


class Gemma2Model(Llama3Model):
    """Gemma 2 pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = Gemma2Config


class Gemma3Model(Llama3Model):
    """Gemma 3 pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = Gemma3Config
