"""OLMo 2's names: what Llama calls `post_attention_layernorm` stands behind attention here, not before the MLP."""

from __future__ import annotations

from typing import Final

from puna.pipelines.architectures.llama3.weight_adapters import GGUF_LAYER_NAMES, GGUFAdapter, safetensors_adapter

__all__ = ["gguf_state_dict", "safetensors_state_dict"]

safetensors_state_dict: Final = safetensors_adapter(
    {
        "self_attn.q_norm": "self_attn.q_norm",
        "self_attn.k_norm": "self_attn.k_norm",
        "post_attention_layernorm": "attention_output_layernorm",
        "post_feedforward_layernorm": "mlp_output_layernorm",
    }
)
gguf_state_dict: Final = GGUFAdapter(
    {
        **{name: module for name, module in GGUF_LAYER_NAMES.items() if name not in ("attn_norm", "ffn_norm")},
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "post_attention_norm": "attention_output_layernorm",
        "post_ffw_norm": "mlp_output_layernorm",
    }
)
