"""A Llama-shaped forward pass in plain NumPy (float64), one request at a time: no cache, no batch, no graph.

It shares no code with the package; tests compare it with whole models. Weights are plain arrays by internal name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from puna.pipelines.architectures.llama3 import Llama3Config

Array = npt.NDArray[np.float64]


def forward(
    config: Llama3Config, weights: Mapping[str, Any], tokens: list[int], rope_length: int | None = None
) -> tuple[Array, Array, Array]:
    """Logits `[T, V]`, hidden states before the final norm `[T, H]`, and after it, for one request from its start.

    `rope_length` is the length that decides rotary frequencies, all tokens unless given.
    """
    length = rope_length if rope_length is not None else len(tokens)
    w = {name: np.asarray(array, dtype=np.float64) for name, array in weights.items()}
    h = w["embed_tokens.weight"][tokens] * config.embedding_multiplier
    for layer in range(config.num_hidden_layers):
        p = f"layers.{layer}."
        a = _norm(config, w, p + "input_layernorm", h)
        h = h + config.residual_multiplier * _attention(config, w, p, a, length)
        m = _norm(config, w, p + "post_attention_layernorm", h)
        h = h + config.residual_multiplier * _mlp(config, w, p + "mlp.", m)
    normalized = _norm(config, w, "norm", h)
    output = w["embed_tokens.weight"] if config.tie_word_embeddings else w["lm_head.weight"]
    return normalized @ output.T / config.logits_scaling, h, normalized


def rotate(x: Array, positions: Array, inv_freq: Array, factor: float, *, interleaved: bool) -> Array:
    """Turn the pairs of `x` `[..., T, D]` by `position * inv_freq`."""
    angle = positions[:, None] * inv_freq[None, :]
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    half = x.shape[-1] // 2
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    turned = np.empty_like(x)
    a, b = first * cos - second * sin, first * sin + second * cos
    if interleaved:
        turned[..., 0::2], turned[..., 1::2] = a, b
    else:
        turned[..., :half], turned[..., half:] = a, b
    return turned


def _norm(config: Llama3Config, w: Mapping[str, Array], name: str, x: Array) -> Array:
    if config.norm_method == "layer_norm":
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    assert config.rms_norm_eps is not None
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * w[name + ".weight"]


def _project(w: Mapping[str, Array], name: str, x: Array) -> Array:
    y = x @ w[name + ".weight"].T
    return y + w[name + ".bias"] if name + ".bias" in w else y


def _attention(config: Llama3Config, w: Mapping[str, Array], p: str, x: Array, length: int) -> Array:
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    if config.stacked_qkv:
        qkv = _project(w, p + "self_attn.qkv_proj", x)
    else:
        qkv = np.concatenate([_project(w, f"{p}self_attn.{n}_proj", x) for n in "qkv"], axis=-1)
    if config.clip_qkv is not None:
        qkv = np.clip(qkv, -config.clip_qkv, config.clip_qkv)
    q, k, v = np.split(qkv, [heads * size, (heads + kv_heads) * size], axis=-1)
    count = x.shape[0]
    rope = config.rotary_embedding()
    inv_freq, factor = rope.inv_freq(length).astype(np.float64), rope.attention_factor(length)
    positions = np.arange(count, dtype=np.float64)
    interleaved = config.interleaved_rope_weights
    q = rotate(q.reshape(count, heads, size).swapaxes(0, 1), positions, inv_freq, factor, interleaved=interleaved)
    k = rotate(k.reshape(count, kv_heads, size).swapaxes(0, 1), positions, inv_freq, factor, interleaved=interleaved)
    v = v.reshape(count, kv_heads, size).swapaxes(0, 1)
    k, v = (np.repeat(part, heads // kv_heads, axis=0) for part in (k, v))
    scores = q @ k.swapaxes(1, 2) * config.attention_multiplier
    scores = np.where(np.tril(np.ones((count, count), dtype=bool)), scores, -np.inf)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (scores / scores.sum(-1, keepdims=True)) @ v
    return _project(w, p + "self_attn.o_proj", mixed.swapaxes(0, 1).reshape(count, heads * size))


def _mlp(config: Llama3Config, w: Mapping[str, Array], p: str, x: Array) -> Array:
    if config.stacked_mlp:
        gate, up = np.split(_project(w, p + "gate_up_proj", x), 2, axis=-1)
    else:
        gate, up = _project(w, p + "gate_proj", x), _project(w, p + "up_proj", x)
    return _project(w, p + "down_proj", gate / (1 + np.exp(-gate)) * up)
