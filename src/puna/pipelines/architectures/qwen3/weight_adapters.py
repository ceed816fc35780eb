"""Qwen3's names: Llama's, and the norms of queries and keys."""

from __future__ import annotations

from typing import Final

from puna.pipelines.architectures.llama3.weight_adapters import GGUF_LAYER_NAMES, GGUFAdapter, safetensors_adapter

__all__ = ["gguf_state_dict", "safetensors_state_dict"]

safetensors_state_dict: Final = safetensors_adapter(
    {
        "self_attn.q_norm": "self_attn.q_norm",
        "self_attn.k_norm": "self_attn.k_norm",
    }
)
gguf_state_dict: Final = GGUFAdapter(
    {
        **GGUF_LAYER_NAMES,
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
    }
)
