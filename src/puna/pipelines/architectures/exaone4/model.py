"""`Exaone4Model`: the Llama model with EXAONE 4's configuration."""

from __future__ import annotations

from puna.pipelines.architectures.exaone4.model_config import Exaone4Config
from puna.pipelines.architectures.llama3 import Llama3Model

__all__ = ["Exaone4Model"]


class Exaone4Model(Llama3Model):
    """EXAONE 4 pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = Exaone4Config
