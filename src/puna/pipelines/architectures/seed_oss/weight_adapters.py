"""Seed-OSS's names in GGUF files, where the norm before the MLP is called after the attention that it follows."""

from __future__ import annotations

from typing import Final

from puna.pipelines.architectures.llama3.weight_adapters import GGUF_LAYER_NAMES, GGUFAdapter

__all__ = ["gguf_state_dict"]

gguf_state_dict: Final = GGUFAdapter({
    **{name: module for name, module in GGUF_LAYER_NAMES.items() if name != "ffn_norm"},
    "post_attention_norm": "post_attention_layernorm",
})
