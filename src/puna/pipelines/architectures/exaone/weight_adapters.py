"""EXAONE's names, which are GPT-2's."""

from __future__ import annotations

from typing import Final

from puna.pipelines.architectures.llama3.weight_adapters import gguf_state_dict, safetensors_adapter

__all__ = ["gguf_state_dict", "safetensors_state_dict"]

safetensors_state_dict: Final = safetensors_adapter(
    {
        "ln_1": "input_layernorm",
        "ln_2": "post_attention_layernorm",
        **{f"attn.attention.{name}_proj": f"self_attn.{name}_proj" for name in ("q", "k", "v")},
        "attn.attention.out_proj": "self_attn.o_proj",
        "mlp.c_fc_0": "mlp.gate_proj",
        "mlp.c_fc_1": "mlp.up_proj",
        "mlp.c_proj": "mlp.down_proj",
    },
    top_names={"wte.weight": "embed_tokens.weight", "ln_f.weight": "norm.weight"},
    layers="h",
)
