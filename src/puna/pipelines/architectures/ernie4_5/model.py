"""`Ernie4_5Model`: the Llama model with Ernie's configuration."""

from __future__ import annotations

from puna.pipelines.architectures.ernie4_5.model_config import Ernie4_5Config
from puna.pipelines.architectures.llama3 import Llama3Model

__all__ = ["Ernie4_5Model"]


class Ernie4_5Model(Llama3Model):
    """Ernie 4.5 pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = Ernie4_5Config
