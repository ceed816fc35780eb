"""The record of every knob that Llama-shaped families turn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal

from puna.errors import UnsupportedModelError
from puna.graph import ops
from puna.graph.ops import RopeSpec
from puna.nn.kv_cache import KVCacheQuantizationConfig
from puna.nn.rotary_embedding import RotaryEmbedding, Unrotated

if TYPE_CHECKING:
    from puna.nn.kv_cache import KVCacheParams

__all__ = ["PRE_NORM", "DecoderSpec", "NormPlace", "ReturnHiddenStates", "ReturnLogits", "default_hidden_state_layers"]


class ReturnLogits(StrEnum):
    """Which logits a step returns: each request's last row, also its last n rows (`VARIABLE`), or also all rows."""

    LAST_TOKEN = "last_token"
    VARIABLE = "variable"
    ALL = "all"


class ReturnHiddenStates(StrEnum):
    """Which hidden states a step returns besides logits (float32; `B` requests, `T` tokens, `H` hidden size).

    `LAST` and `LAST_PER_DEVICE`: `[B, H]`, the last row of each request before the final norm. `ALL`: `[T, H]` before
    the final norm. `ALL_NORMALIZED`: `[T, H]` after it. `EAGLE3`: `[T, n * H]`, the outputs of n chosen layers side by
    side in increasing order of layers; the number of layers stands for the output of the final norm.
    """

    NONE = "none"
    LAST = "last"
    ALL_NORMALIZED = "all_normalized"
    ALL = "all"
    LAST_PER_DEVICE = "last_per_device"
    EAGLE3 = "eagle3"


class NormPlace(StrEnum):
    """Where a layer has a norm: on what a branch reads, or on what it gives before that joins the residual stream."""

    BEFORE_ATTENTION = "before_attention"
    AFTER_ATTENTION = "after_attention"
    BEFORE_MLP = "before_mlp"
    AFTER_MLP = "after_mlp"


PRE_NORM: Final = frozenset({NormPlace.BEFORE_ATTENTION, NormPlace.BEFORE_MLP})


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """Every number and switch of a Llama-shaped decoder: a family is a value of this record.

    Attributes:
        vocab_size: Rows of the embedding and of the output matrix.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the gated MLP.
        num_layers: How many blocks.
        num_heads: Query heads; a multiple of `num_kv_heads`.
        num_kv_heads: Key and value heads.
        head_dim: Size of a head; need not be `hidden_size / num_heads`.
        norm_method: `rms_norm` or `layer_norm`.
        norm_eps: Added to the mean square (or variance) before the square root.
        attention_bias: Biases on Q, K and V.
        attention_output_bias: Bias on the attention's output projection.
        mlp_bias: Biases on the three products of the MLP.
        stacked_qkv: Q, K, V are one matrix `self_attn.qkv_proj`, rows in that order.
        stacked_mlp: Gate and up are one matrix `mlp.gate_up_proj`, gate first.
        clip_qkv: Q, K, V are clamped to plus or minus this after their product (and bias); None: not at all.
        attention_multiplier: The whole factor on q·k; None: `head_dim ** -0.5`.
        embedding_multiplier: Factor on the embedding, before the first layer.
        residual_multiplier: Factor on each branch before it is added to the residual stream.
        logits_scaling: What logits are divided by.
        tie_word_embeddings: The output matrix is the embedding.
        sliding_window: A query at p sees the positions p - window + 1 to p; None: all.
        sliding_window_layers: The layers that `sliding_window` applies to; None: every layer.
        rope: The rotary embedding.
        interleaved_rope: Pairs are elements 2j and 2j+1 (as Llama's GGUF files store them), not j and j + rot_dim/2.
        return_logits: Which logits a step returns.
        return_hidden_states: Which hidden states a step returns.
        hidden_state_layers: The layers of `EAGLE3`, from 0; -1 stands for the embeddings, `num_layers` for the
            output of the last norm; None: `default_hidden_state_layers(num_layers)`.
        use_subgraphs: Layers of equal shape and formats are built once and called; same results either way.
        kv_params: Sizes and element type of the KV cache.
        norm_has_weight: Norms have a weight; None: `rms_norm` has, `layer_norm` has not.
        norm_has_bias: Norms have a bias (`layer_norm` only).
        activation: Of the gate in the MLP.
        attention_softcap: Scores s become `cap * tanh(s / cap)` before the softmax; None: they stay.
        logits_softcap: Logits x become `cap * tanh(x / cap)` after their scaling; None: they stay.
        norm_places: Where a layer has norms, see `NormPlace`.
        parallel_branches: Attention and MLP read the same normalized state and are added together.
        qk_norm: Queries and keys are RMS-normalized before they are rotated: each head by one weight `[head_dim]`
            (`head`), or the whole row (`row`); None: not at all.
        unrotated_layers: Layers that do not rotate queries and keys.
        window_rope: The rotary embedding of the layers with a window, where it is another one.
        max_lora_rank: The largest rank of the adapters that rows of a step may have; 0: no row has an adapter.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RotaryEmbedding
    kv_params: KVCacheParams
    norm_method: Literal["rms_norm", "layer_norm"] = "rms_norm"
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    stacked_qkv: bool = False
    stacked_mlp: bool = False
    clip_qkv: float | None = None
    attention_multiplier: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    sliding_window_layers: frozenset[int] | None = None
    interleaved_rope: bool = False
    return_logits: ReturnLogits = ReturnLogits.LAST_TOKEN
    return_hidden_states: ReturnHiddenStates = ReturnHiddenStates.NONE
    hidden_state_layers: tuple[int, ...] | None = None
    use_subgraphs: bool = True
    norm_has_weight: bool | None = None
    norm_has_bias: bool = False
    activation: ops.Activation = "silu"
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    norm_places: frozenset[NormPlace] = PRE_NORM
    parallel_branches: bool = False
    qk_norm: Literal["head", "row"] | None = None
    unrotated_layers: frozenset[int] = frozenset()
    window_rope: RotaryEmbedding | None = None
    max_lora_rank: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.max_lora_rank >= 0, "max_lora_rank", self.max_lora_rank, "at least 0")
        _require(self.num_heads % self.num_kv_heads == 0, "num_heads", self.num_heads, f"{self.num_kv_heads} times n")
        _require(self.rope.head_dim == self.head_dim, "rope.head_dim", self.rope.head_dim, str(self.head_dim))
        _require(math.isfinite(self.norm_eps) and self.norm_eps >= 0, "norm_eps", self.norm_eps, "at least 0")
        _require(self.norm_method in ("rms_norm", "layer_norm"), "norm_method", self.norm_method, "one of the two")
        if self.norm_has_bias:
            _require(self.norm_method == "layer_norm", "norm_has_bias", True, "only with norm_method = layer_norm")
        for name in ("clip_qkv", "attention_multiplier", "sliding_window", "logits_scaling"):
            value = getattr(self, name)
            _require(value is None or (math.isfinite(value) and value > 0), name, value, "more than 0, or None")
        for name in ("attention_softcap", "logits_softcap"):
            value = getattr(self, name)
            _require(value is None or (math.isfinite(value) and value > 0), name, value, "more than 0, or None")
        for name in ("embedding_multiplier", "residual_multiplier"):
            _require(math.isfinite(getattr(self, name)), name, getattr(self, name), "a finite number")
        for name in ("sliding_window_layers", "hidden_state_layers", "unrotated_layers"):
            layers = getattr(self, name) or ()
            first, last = (-1, self.num_layers) if name == "hidden_state_layers" else (0, self.num_layers - 1)
            _require(all(first <= i <= last for i in layers), name, layers, f"layers of {first}..{last}")
        if self.parallel_branches:
            shared = frozenset({NormPlace.BEFORE_ATTENTION})
            _require(self.norm_places == shared, "norm_places", sorted(self.norm_places), "one norm, before attention")
        if self.window_rope is not None:
            sizes = (self.window_rope.head_dim, self.window_rope.rot_dim)
            _require(sizes == (self.rope.head_dim, self.rope.rot_dim), "window_rope", sizes, "the sizes of rope")
        self._check_cache()

    @property
    def attention_scale(self) -> float:
        """The whole factor on q·k."""
        return self.head_dim**-0.5 if self.attention_multiplier is None else self.attention_multiplier

    @property
    def selected_layers(self) -> tuple[int, ...]:
        """The layers whose outputs `EAGLE3` returns, ascending."""
        chosen = self.hidden_state_layers
        return default_hidden_state_layers(self.num_layers) if chosen is None else tuple(sorted(set(chosen)))

    def window_of(self, layer: int) -> int | None:
        """The sliding window of one layer, or None."""
        applies = self.sliding_window_layers is None or layer in self.sliding_window_layers
        return self.sliding_window if applies else None

    def rope_name(self, layer: int) -> str:
        """Which of the `ropes` rotates queries and keys of one layer."""
        if layer in self.unrotated_layers:
            return "none"
        return "window" if self.window_rope is not None and self.window_of(layer) is not None else "default"

    @property
    def ropes(self) -> dict[str, RopeSpec]:
        """The rotary embeddings by name, those that a layer uses."""
        known = {"default": self.rope, "window": self.window_rope, "none": Unrotated(self.rope.rot_dim)}
        found = {name: known[name] for name in map(self.rope_name, range(self.num_layers))}
        return {name: rope for name, rope in found.items() if rope is not None}

    def _check_cache(self) -> None:
        cache = self.kv_params
        if cache.tensor_parallel_degree != 1:
            count = cache.tensor_parallel_degree
            raise UnsupportedModelError("devices", count, supported="one per replica (no tensor parallelism)")
        for name, got, expected in (
            ("kv_params.n_kv_heads", cache.n_kv_heads, self.num_kv_heads),
            ("kv_params.head_dim", cache.head_dim, self.head_dim),
            ("kv_params.num_layers", cache.num_layers, self.num_layers),
        ):
            _require(got == expected, name, got, str(expected))
        kept = KVCacheQuantizationConfig.of(cache.dtype, cache.head_dim)
        scales = cache.kvcache_quant_config
        _require(scales == kept, "kv_params.kvcache_quant_config", scales, f"{kept} with a cache of {cache.dtype}")


def default_hidden_state_layers(num_layers: int) -> tuple[int, ...]:
    """The layers whose outputs an EAGLE-3 draft reads: those before layers 2, `num_layers / 2` and `num_layers - 3`.

    Source: Li et al. 2025 (EAGLE-3). In a model of few layers the same layer may be meant twice; it is returned once.
    """
    before = (2, num_layers // 2, num_layers - 3)
    return tuple(sorted({min(max(layer - 1, 0), num_layers - 1) for layer in before}))


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} of the decoder is {value!r}, expected {expected}")
