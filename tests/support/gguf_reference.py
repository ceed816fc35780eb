"""A Llama GGUF file as a transformers model in float32: the reference for quantized files.

The weights are dequantized by the `gguf` package and the rows of Q and K are put back into the order of the original
checkpoint, so neither the reader nor the arithmetic of Puna takes part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def original_row_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """[heads*D, K] with rotary pairs side by side -> the halves of the original checkpoint."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def transformers_model(path: str | Path) -> LlamaForCausalLM:
    """The model of a Llama GGUF file, float32, eager attention."""
    reader = gguf.GGUFReader(path)

    def field(name: str) -> Any:
        found = reader.fields.get(f"llama.{name}")
        return None if found is None else found.contents()

    heads, kv_heads = int(field("attention.head_count")), int(field("attention.head_count_kv"))
    state: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        stem = tensor.name.removesuffix(".weight")
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            if part in ("attn_q", "attn_k"):
                values = original_row_order(values, heads if part == "attn_q" else kv_heads)
            state[f"model.layers.{layer}.{NAMES[part]}.weight"] = torch.from_numpy(values.copy())
        else:
            state[f"{TOP[stem]}.weight"] = torch.from_numpy(values.copy())
    tied = "lm_head.weight" not in state
    config = LlamaConfig(
        vocab_size=state["model.embed_tokens.weight"].shape[0],
        hidden_size=int(field("embedding_length")),
        intermediate_size=int(field("feed_forward_length")),
        num_hidden_layers=int(field("block_count")),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=int(field("context_length")),
        rms_norm_eps=float(field("attention.layer_norm_rms_epsilon")),
        rope_theta=float(field("rope.freq_base") or 10000.0),
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    if tied:
        model.tie_weights()
    return model


def reference_logits(model: LlamaForCausalLM, ids: list[int]) -> np.ndarray:
    """Logits of every position, float32 [T, V]."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()
