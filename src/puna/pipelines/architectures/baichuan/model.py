"""`BaichuanModel`: the Llama model with Baichuan's configuration."""

from __future__ import annotations

from puna.pipelines.architectures.baichuan.model_config import BaichuanConfig
from puna.pipelines.architectures.llama3 import Llama3Model

__all__ = ["BaichuanModel"]


class BaichuanModel(Llama3Model):
    """Baichuan pipeline model. The arguments are those of `LlamaModelBase`."""

    config_class = BaichuanConfig
