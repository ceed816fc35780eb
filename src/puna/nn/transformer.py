"""The decoder: the record of every knob that Llama-shaped families turn, and the graph that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from puna.nn.rotary_embedding import RotaryEmbedding

if TYPE_CHECKING:
    from puna.nn.kv_cache import KVCacheParams


class ReturnLogits(StrEnum):
    """Which rows of logits a step returns: each request's last (`LAST_TOKEN`), also its last n, or also every row (`ALL`)."""

    LAST_TOKEN = "last_token"
    VARIABLE = "variable"
    ALL = "all"


class ReturnHiddenStates(StrEnum):
    """Which hidden states a step returns besides logits (float32; `B` requests, `T` tokens, `H` hidden size).

    `LAST` and `LAST_PER_DEVICE`: `[B, H]`, the last row of each request before the final norm. `ALL`: `[T, H]` before
    the final norm. `ALL_NORMALIZED`: `[T, H]` after it. `EAGLE3`: `[T, n * H]`, the outputs of n chosen layers side by
    side in increasing order of layers.
    """

    NONE = "none"
    LAST = "last"
    ALL_NORMALIZED = "all_normalized"
    ALL = "all"
    LAST_PER_DEVICE = "last_per_device"
    EAGLE3 = "eagle3"


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
        hidden_state_layers: The layers of `EAGLE3`; None: `default_hidden_state_layers(num_layers)`.
        use_subgraphs: Layers of equal shape and formats are built once and called; same results either way.
        kv_params: Sizes and element type of the KV cache.
        norm_has_weight: Norms have a weight; None: `rms_norm` has, `layer_norm` has not.
        norm_has_bias: Norms have a bias (`layer_norm` only).
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
