"""Phi-3's names in GGUF files: `ffn_up` is gate and up in one matrix, gate first."""

from __future__ import annotations

from typing import Final

from puna.pipelines.architectures.llama3.weight_adapters import (
    GGUF_LAYER_NAMES,
    GGUFAdapter,
    safetensors_state_dict,
)

__all__ = ["gguf_state_dict", "safetensors_state_dict"]

gguf_state_dict: Final = GGUFAdapter(
    {name: module for name, module in GGUF_LAYER_NAMES.items() if name != "ffn_gate"} | {"ffn_up": "mlp.gate_up_proj"},
    stacked=("qkv_proj", "gate_up_proj"),
)
