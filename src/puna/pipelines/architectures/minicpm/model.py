"""`MiniCPMModel`: the Llama model with MiniCPM's configuration."""

from __future__ import annotations

from puna.pipelines.architectures.llama3 import Llama3Model
from puna.pipelines.architectures.minicpm.model_config import MiniCPMConfig

__all__ = ["MiniCPMModel"]


class MiniCPMModel(Llama3Model):
    """MiniCPM pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = MiniCPMConfig
