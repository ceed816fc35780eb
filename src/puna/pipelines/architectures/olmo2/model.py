"""`Olmo2Model`, `Olmo3Model`: the Llama model with the configurations of OLMo 2 and 3."""

from __future__ import annotations

from puna.pipelines.architectures.llama3 import Llama3Model
from puna.pipelines.architectures.olmo2.model_config import Olmo2Config, Olmo3Config

__all__ = ["Olmo2Model", "Olmo3Model"]


class Olmo2Model(Llama3Model):
    """OLMo 2 pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = Olmo2Config


class Olmo3Model(Llama3Model):
    """OLMo 3 pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = Olmo3Config
