"""GLM-4's names."""

from __future__ import annotations

from typing import Final

from puna.pipelines.architectures.llama3.weight_adapters import GGUF_LAYER_NAMES, GGUFAdapter, safetensors_adapter

__all__ = ["gguf_state_dict", "safetensors_state_dict"]

safetensors_state_dict: Final = safetensors_adapter({
    "post_self_attn_layernorm": "attention_output_layernorm",
    "post_mlp_layernorm": "mlp_output_layernorm",
})
gguf_state_dict: Final = GGUFAdapter(
    {
        **{name: module for name, module in GGUF_LAYER_NAMES.items() if name != "ffn_gate"},
        "ffn_up": "mlp.gate_up_proj",
        "post_attention_norm": "attention_output_layernorm",
        "post_ffw_norm": "mlp_output_layernorm",
    },
    stacked=("gate_up_proj",),
)
