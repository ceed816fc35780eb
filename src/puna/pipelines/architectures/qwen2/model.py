"""`Qwen2Model`: the Llama model with biases on Q, K and V."""

from __future__ import annotations

from puna.pipelines.architectures.llama3 import Llama3Model
from puna.pipelines.architectures.qwen2.model_config import Qwen2Config

__all__ = ["Qwen2Model"]


class Qwen2Model(Llama3Model):
    """Qwen2 pipeline model. The arguments are those of `LlamaModelBase`."""

    attention_bias = True
    config_class = Qwen2Config
