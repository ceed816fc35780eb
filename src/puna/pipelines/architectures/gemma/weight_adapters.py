"""Gemma's names, and norms that are stored as what their weights have more than 1."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from puna.graph.weights import WeightData, Weights
from puna.pipelines.architectures.llama3.weight_adapters import GGUF_LAYER_NAMES, GGUFAdapter, safetensors_adapter
from puna.pipelines.lib.config_values import read_value

__all__ = ["gguf_state_dict", "safetensors_state_dict"]

_QK_NORMS: Final = {"self_attn.q_norm": "self_attn.q_norm", "self_attn.k_norm": "self_attn.k_norm"}
_rename: Final = safetensors_adapter()
_rename_sandwich: Final = safetensors_adapter({
    **_QK_NORMS,
    "post_attention_layernorm": "attention_output_layernorm",
    "pre_feedforward_layernorm": "post_attention_layernorm",
    "post_feedforward_layernorm": "mlp_output_layernorm",
})
gguf_state_dict: Final = GGUFAdapter({
    **GGUF_LAYER_NAMES,
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "attention_output_layernorm",
    "post_ffw_norm": "mlp_output_layernorm",
})


def safetensors_state_dict(
    state_dict: dict[str, Weights], /, *, huggingface_config: Any = None, **_: Any
) -> dict[str, WeightData]:
    """The tensors of a checkpoint in Hugging Face layout, by the graph's names. Arguments and errors as
    `safetensors_adapter`'s.

    A norm multiplies with 1 + weight; the sum is formed here, in float32. GGUF files hold it.
    """
    is_first = read_value(huggingface_config, "model_type") == "gemma"
    found = (_rename if is_first else _rename_sandwich)(state_dict, huggingface_config=huggingface_config)
    for name, data in found.items():
        if name.removesuffix(".weight").endswith("norm"):
            found[name] = WeightData.from_numpy(data.to_float32() + np.float32(1), data.name)
    return found
