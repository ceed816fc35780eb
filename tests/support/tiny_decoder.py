"""Random decoders of a few thousand weights, and steps for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from puna.dtype import DType
from puna.graph import DeviceRef
from puna.graph.weights.weight_data import WeightData
from puna.nn.decoder_spec import DecoderSpec, NormPlace, ReturnHiddenStates, ReturnLogits
from puna.nn.kv_cache import KVCacheParams, KVCacheQuantizationConfig
from puna.nn.rotary_embedding import DynamicRopeScalingParams, LongRoPEScalingParams, RotaryEmbedding

Array = np.ndarray[Any, Any]

KNOBS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer_norm": {"norm_method": "layer_norm"},
    "layer_norm_with_weights": {"norm_method": "layer_norm", "norm_has_weight": True, "norm_has_bias": True},
    "biases": {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True},
    "stacked": {"stacked_qkv": True, "stacked_mlp": True},
    "stacked_biases_clip": {"stacked_qkv": True, "attention_bias": True, "clip_qkv": 0.5},
    "clip": {"clip_qkv": 0.4, "attention_bias": True},
    "multipliers": {
        "attention_multiplier": 0.1, "embedding_multiplier": 3.0, "residual_multiplier": 0.22, "logits_scaling": 4.0,
    },
    "tied": {"tie_word_embeddings": True, "embedding_multiplier": 2.0},
    "head_dim": {"num_heads": 2, "num_kv_heads": 1, "head_dim": 48},
    "partial_rotation": {"rope": RotaryEmbedding(16, 8, 1e4)},
    "interleaved": {"interleaved_rope": True},
    "window": {"sliding_window": 3},
    "window_of_one_layer": {"sliding_window": 3, "sliding_window_layers": frozenset({1})},
    "post_norm": {"norm_places": frozenset({NormPlace.AFTER_ATTENTION, NormPlace.AFTER_MLP})},
    "sandwich": {"norm_places": frozenset(NormPlace)},
    "parallel": {
        "norm_places": frozenset({NormPlace.BEFORE_ATTENTION}), "parallel_branches": True, "norm_method": "layer_norm",
        "norm_has_weight": True, "residual_multiplier": 0.5,
    },
    "head_norm": {"qk_norm": "head"},
    "row_norm": {"qk_norm": "row", "stacked_qkv": True},
    "clip_and_norm": {"qk_norm": "head", "clip_qkv": 0.7, "attention_bias": True},
    "unrotated": {"unrotated_layers": frozenset({1})},
    "window_rope": {
        "sliding_window": 3, "sliding_window_layers": frozenset({0}), "window_rope": RotaryEmbedding(16, 16, 100.0),
    },
    "gelu": {"activation": "gelu_tanh", "stacked_mlp": True},
    "attention_softcap": {"attention_softcap": 0.5, "attention_multiplier": 1.0, "sliding_window": 5},
    "softcap": {"logits_softcap": 0.8, "return_logits": ReturnLogits.ALL},
    "half_cache": {"kv_dtype": DType.float16},
    "bfloat16_cache": {"kv_dtype": DType.bfloat16},
    "int8_cache": {"kv_dtype": DType.int8},
    "longrope": {"rope": RotaryEmbedding(16, 16, 1e4, LongRoPEScalingParams([1.0] * 8, [4.0] * 8, 8, 64))},
    "dynamic": {"rope": RotaryEmbedding(16, 16, 1e4, DynamicRopeScalingParams(4.0, 6))},
    "variable": {"return_logits": ReturnLogits.VARIABLE},
    "all": {"return_logits": ReturnLogits.ALL, "logits_scaling": 2.0},
    "hidden_last": {"return_hidden_states": ReturnHiddenStates.LAST},
    "hidden_all": {"return_hidden_states": ReturnHiddenStates.ALL, "return_logits": ReturnLogits.VARIABLE},
    "hidden_normalized": {"return_hidden_states": ReturnHiddenStates.ALL_NORMALIZED},
    "hidden_per_device": {"return_hidden_states": ReturnHiddenStates.LAST_PER_DEVICE},
    "eagle3": {"return_hidden_states": ReturnHiddenStates.EAGLE3, "num_layers": 5, "return_logits": ReturnLogits.ALL},
    "selected": {"return_hidden_states": ReturnHiddenStates.EAGLE3, "hidden_state_layers": (1, 0)},
}  # fmt: skip
"""Changes of `tiny_spec`, each of which draws something else."""


def tiny_spec(**changes: Any) -> DecoderSpec:
    """Two layers, 4 query heads over 2 KV heads; any field of the spec, `kv_dtype` or `page_size` may be changed."""
    kv_dtype, page_size = changes.pop("kv_dtype", DType.float32), changes.pop("page_size", 4)
    heads, kv_heads, head_dim = changes.pop("num_heads", 4), changes.pop("num_kv_heads", 2), changes.pop("head_dim", 16)
    layers = changes.pop("num_layers", 2)
    cache = KVCacheParams(
        dtype=kv_dtype,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        num_layers=layers,
        devices=[DeviceRef.CPU()],
        page_size=page_size,
        kvcache_quant_config=KVCacheQuantizationConfig.of(kv_dtype, head_dim),
    )
    fields: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "norm_eps": 1e-5,
        "rope": RotaryEmbedding(head_dim, head_dim, 10000.0),
        "kv_params": cache,
    }
    return DecoderSpec(**fields | changes)


def tiny_weights(spec: DecoderSpec, seed: int = 0, dtype: Any = np.float32) -> dict[str, WeightData]:
    """Random weights for a spec: matrices in `dtype`, vectors in float32."""
    random = np.random.default_rng(seed)
    found: dict[str, WeightData] = {}

    def matrix(name: str, rows: int, cols: int) -> None:
        values = random.standard_normal((rows, cols)) * cols**-0.5
        found[f"{name}.weight"] = WeightData.from_numpy(values.astype(dtype), f"{name}.weight")

    def vector(name: str, size: int, centre: float = 0.0) -> None:
        values = (centre + 0.1 * random.standard_normal(size)).astype(np.float32)
        found[name] = WeightData.from_numpy(values, name)

    def linear(name: str, rows: int, cols: int, has_bias: bool) -> None:
        matrix(name, rows, cols)
        if has_bias:
            vector(f"{name}.bias", rows)

    def norm(name: str) -> None:
        has_weight = spec.norm_method == "rms_norm" if spec.norm_has_weight is None else spec.norm_has_weight
        if has_weight:
            vector(f"{name}.weight", spec.hidden_size, 1.0)
        if spec.norm_has_bias:
            vector(f"{name}.bias", spec.hidden_size)

    hidden, size = spec.hidden_size, spec.intermediate_size
    width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    matrix("embed_tokens", spec.vocab_size, hidden)
    for layer in range(spec.num_layers):
        base = f"layers.{layer}."
        if NormPlace.BEFORE_ATTENTION in spec.norm_places:
            norm(f"{base}input_layernorm")
        if spec.stacked_qkv:
            linear(f"{base}self_attn.qkv_proj", width + 2 * kv_width, hidden, spec.attention_bias)
        else:
            for name, rows in (("q", width), ("k", kv_width), ("v", kv_width)):
                linear(f"{base}self_attn.{name}_proj", rows, hidden, spec.attention_bias)
        linear(f"{base}self_attn.o_proj", hidden, width, spec.attention_output_bias)
        if NormPlace.BEFORE_MLP in spec.norm_places:
            norm(f"{base}post_attention_layernorm")
        for place, name in ((NormPlace.AFTER_ATTENTION, "attention_output"), (NormPlace.AFTER_MLP, "mlp_output")):
            if place in spec.norm_places:
                norm(f"{base}{name}_layernorm")
        if spec.qk_norm is not None:
            is_per_head = spec.qk_norm == "head"
            vector(f"{base}self_attn.q_norm.weight", spec.head_dim if is_per_head else width, 1.0)
            vector(f"{base}self_attn.k_norm.weight", spec.head_dim if is_per_head else kv_width, 1.0)
        if spec.stacked_mlp:
            linear(f"{base}mlp.gate_up_proj", 2 * size, hidden, spec.mlp_bias)
        else:
            linear(f"{base}mlp.gate_proj", size, hidden, spec.mlp_bias)
            linear(f"{base}mlp.up_proj", size, hidden, spec.mlp_bias)
        linear(f"{base}mlp.down_proj", hidden, size, spec.mlp_bias)
    norm("norm")
    if not spec.tie_word_embeddings:
        matrix("lm_head", spec.vocab_size, hidden)
    return found


@dataclass
class TinyCache:
    """A cache of enough shuffled blocks for a few requests, filled with NaN until a step writes to it."""

    blocks: Array
    table: Array
    lengths: Array
    scales: Array | None = None

    @classmethod
    def make(cls, spec: DecoderSpec, batch: int, max_tokens: int, seed: int = 0) -> TinyCache:
        cache = spec.kv_params
        pages = -(-max_tokens // cache.page_size)
        count = batch * pages
        shape = (count + 1, 2, cache.num_layers, cache.page_size, cache.n_kv_heads, cache.head_dim)
        order = np.random.default_rng(seed).permutation(count).astype(np.uint32)
        is_int8 = cache.dtype is DType.int8
        blocks = np.full(shape, 99 if is_int8 else np.nan, cache.dtype.to_numpy())
        scales = np.full((*shape[:5], 1), np.nan, np.float32) if is_int8 else None
        return cls(blocks, order.reshape(batch, pages), np.zeros(batch, np.uint32), scales)

    def inputs(self, parts: list[Array], n: int = 1) -> list[Array]:
        """The graph's inputs for the next tokens of each request; the cache counts them as cached from then on."""
        counts = np.array([part.size for part in parts], np.int64)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32)
        tokens = np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)
        lengths = self.lengths
        totals = lengths + counts
        limits = np.array([[counts.max(initial=0), totals.max(initial=0)]], np.uint32)
        self.lengths = totals.astype(np.uint32)
        scales = [] if self.scales is None else [self.scales]
        return [tokens, offsets, np.array([n], np.int64), self.blocks, lengths, self.table, limits, *scales]

    def copy(self) -> TinyCache:
        return replace(self, blocks=self.blocks.copy(), scales=None if self.scales is None else self.scales.copy())


def random_tokens(spec: DecoderSpec, lengths: list[int], seed: int = 0) -> list[Array]:
    """Token ids for requests of these lengths."""
    random = np.random.default_rng(seed)
    return [random.integers(0, spec.vocab_size, length) for length in lengths]
