"""What adapters may update in a model of Llama's kind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.llama3.model_config import Llama3Config
from puna.pipelines.lib import MAXModelConfig, SupportedArchitecture
from puna.pipelines.lora import ModelProducts

__all__ = ["adapter_products"]


def adapter_products(
    numbers: Llama3Config, model: MAXModelConfig, architecture: SupportedArchitecture
) -> ModelProducts:
    """The products of a model, with rows as its checkpoint has them.

    Args:
        numbers: The decoder.
        model: The checkpoint.
        architecture: Its family.
    """

    def is_interleaved(kind: WeightsFormat) -> bool:
        if kind is model.weights_format:
            return numbers.interleaved_rope_weights
        other: Any = SimpleNamespace(is_gguf=kind is WeightsFormat.gguf, rope_type=None)
        return type(numbers).is_interleaved(other)

    return ModelProducts(
        num_layers=numbers.num_hidden_layers,
        hidden_size=numbers.hidden_size,
        intermediate_size=numbers.intermediate_size,
        vocab_size=numbers.vocab_size,
        num_heads=numbers.num_attention_heads,
        num_kv_heads=numbers.num_key_value_heads,
        head_dim=numbers.head_dim,
        is_interleaved=numbers.interleaved_rope_weights,
        interleaved_in={kind: is_interleaved(kind) for kind in WeightsFormat},
        weight_adapters=architecture.weight_adapters,
        huggingface_config=model.huggingface_config,
        gguf_architectures=tuple(architecture.gguf_architectures),
    )
