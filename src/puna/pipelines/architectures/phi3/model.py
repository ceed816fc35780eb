"""`Phi3Model`: the Llama model with Phi-3's configuration."""

from __future__ import annotations

from puna.pipelines.architectures.llama3 import Llama3Model
from puna.pipelines.architectures.phi3.model_config import Phi3Config

__all__ = ["Phi3Model"]


class Phi3Model(Llama3Model):
    """Phi-3 pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = Phi3Config
