"""Baichuan's names, and the normalized output matrix of Baichuan 2."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from puna.graph.weights import WeightData, Weights
from puna.pipelines.architectures.llama3.weight_adapters import gguf_state_dict, safetensors_adapter
from puna.pipelines.lib.config_values import read_count

__all__ = ["gguf_state_dict", "safetensors_state_dict"]

_rename: Final = safetensors_adapter({"self_attn.W_pack": "self_attn.qkv_proj"})
_VOCABULARY_OF_2: Final = 125696
_SMALLEST_NORM: Final = np.float32(1e-12)


def safetensors_state_dict(
    state_dict: dict[str, Weights], /, *, huggingface_config: Any = None, **_: Any
) -> dict[str, WeightData]:
    """The tensors of a checkpoint in Hugging Face layout, by the graph's names. Arguments and errors as
    `safetensors_adapter`'s.

    Baichuan 2, which only the size of its vocabulary tells from Baichuan 1, divides each row of the output matrix by
    its length when it runs; here that is done once.
    """
    found = _rename(state_dict, huggingface_config=huggingface_config)
    head = found.get("lm_head.weight")
    if head is not None and read_count(huggingface_config, "vocab_size", None) == _VOCABULARY_OF_2:
        values = head.to_float32()
        lengths = np.maximum(np.sqrt(np.sum(np.square(values), axis=1, keepdims=True)), _SMALLEST_NORM)
        found["lm_head.weight"] = WeightData.from_numpy(values / lengths, head.name).astype(head.dtype)
    return found
