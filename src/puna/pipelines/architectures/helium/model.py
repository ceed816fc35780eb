"""`HeliumModel`: the Llama model with Helium's configuration."""

from __future__ import annotations

from puna.pipelines.architectures.helium.model_config import HeliumConfig
from puna.pipelines.architectures.llama3 import Llama3Model

__all__ = ["HeliumModel"]


class HeliumModel(Llama3Model):
    """Helium pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = HeliumConfig
