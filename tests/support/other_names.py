"""Checkpoints whose tensors have other names than Llama's, or another arrangement: both ways, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray[Any, Any]]

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
# Llama's module -> the family's; names are parts between dots.
_NAMES: dict[str, dict[str, str]] = {
    "exaone": {
        "model.layers": "transformer.h",
        "model.embed_tokens": "transformer.wte",
        "model.norm": "transformer.ln_f",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
        **{name: f"attn.attention.{name.removeprefix('self_attn.')}" for name in _QKV},
        "self_attn.o_proj": "attn.attention.out_proj",
        "mlp.gate_proj": "mlp.c_fc_0",
        "mlp.up_proj": "mlp.c_fc_1",
        "mlp.down_proj": "mlp.c_proj",
    },
    "internlm2": {
        "model.embed_tokens": "model.tok_embeddings",
        "lm_head": "output",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.wqkv": "attention.wqkv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
    },
    "baichuan": {"self_attn.wqkv": "self_attn.W_pack"},
}


def own_names(config: Mapping[str, Any], tensors: Tensors) -> Tensors:
    """Tensors by Llama's names, as the family's checkpoints have them."""
    names = _NAMES.get(config["model_type"], {})
    found: Tensors = {}
    for name, values in tensors.items():
        if "self_attn.wqkv" in names and any(part in name for part in _QKV):
            if _QKV[0] in name:
                q, k, v = (tensors[name.replace(_QKV[0], part)] for part in _QKV)
                found[_renamed(name.replace(_QKV[0], "self_attn.wqkv"), names)] = _joined(config, q, k, v)
            continue
        found[_renamed(name, names)] = values
    return found


def llama_names(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray[Any, Any]]) -> Tensors:
    """The inverse: tensors of the family's checkpoints by Llama's names."""
    names = {theirs: ours for ours, theirs in _NAMES.get(config["model_type"], {}).items()}
    found: Tensors = {}
    for own, values in tensors.items():
        name = _renamed(own, names)
        if "self_attn.wqkv" in name:
            parts = _split(config, values)
            found |= {name.replace("self_attn.wqkv", part): rows for part, rows in zip(_QKV, parts, strict=True)}
        else:
            found[name] = values
    return found


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        padded = f".{name}."
        if f".{ours}." in padded:
            name = padded.replace(f".{ours}.", f".{theirs}.").strip(".")
    return name


def _joined(config: Mapping[str, Any], *parts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if config["model_type"] == "baichuan":
        return np.concatenate(parts)
    groups = config["num_key_value_heads"]
    by_group = [part.reshape(groups, part.shape[0] // groups, *part.shape[1:]) for part in parts]
    joined = np.concatenate(by_group, axis=1)
    return joined.reshape(-1, *parts[0].shape[1:])


def _split(config: Mapping[str, Any], values: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = values.shape[0] // (heads + 2 * groups)
    if config["model_type"] == "baichuan":
        return np.split(values, [heads * size, (heads + groups) * size])
    grouped = values.reshape(groups, heads // groups + 2, size, *values.shape[1:])
    parts = grouped[:, :-2], grouped[:, -2], grouped[:, -1]
    return [part.reshape(-1, *values.shape[1:]) for part in parts]
