"""`ExaoneModel`: the Llama model with EXAONE's configuration."""

from __future__ import annotations

from puna.pipelines.architectures.exaone.model_config import ExaoneConfig
from puna.pipelines.architectures.llama3 import Llama3Model

__all__ = ["ExaoneModel"]


class ExaoneModel(Llama3Model):
    """EXAONE pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = ExaoneConfig
