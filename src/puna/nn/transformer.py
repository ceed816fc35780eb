"""The decoder: the record of every knob that Llama-shaped families turn, and the graph that follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal

from puna.dtype import DType
from puna.errors import UnsupportedModelError
from puna.graph import BATCH_SIZE, TOTAL_SEQ_LEN, Dim, Graph, TensorType, Value, ops
from puna.graph.ops import AdapterValues, KVCacheValues, RopeSpec
from puna.graph.ops.lora import MODEL_LAYER
from puna.nn.attention import AttentionInputs
from puna.nn.declarations import WeightDeclarations
from puna.nn.embedding import Embedding
from puna.nn.kv_cache import KVCacheQuantizationConfig
from puna.nn.linear import Linear
from puna.nn.lora import update
from puna.nn.norm import declare_norm
from puna.nn.rotary_embedding import RotaryEmbedding, Unrotated
from puna.nn.transformer_block import TransformerBlock

if TYPE_CHECKING:
    from puna.graph.weights.weight_data import WeightData
    from puna.nn.kv_cache import KVCacheParams

__all__ = [
    "PRE_NORM",
    "DecoderSpec",
    "NormPlace",
    "ReturnHiddenStates",
    "ReturnLogits",
    "Transformer",
    "build_decoder_graph",
    "default_hidden_state_layers",
]


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


class Transformer:
    """The whole decoder from token ids to logits.

    Args:
        spec: Its sizes and switches.
        weights: The checkpoint, by internal name.

    Raises:
        WeightsError: a weight is missing or has another shape.
        UnsupportedModelError: a weight is stored in a way that is not supported.
    """

    def __init__(self, spec: DecoderSpec, weights: Mapping[str, WeightData]) -> None:
        self.spec = spec
        self.weights = WeightDeclarations(weights)
        self.embedding = Embedding.declare(
            self.weights, "embed_tokens", spec.vocab_size, spec.hidden_size, spec.embedding_multiplier
        )
        self.norm = declare_norm(spec, self.weights, "norm")
        # No later layer evens out what is rounded here, and few rows get this far: the second term costs little.
        output = (
            self.embedding.weight
            if spec.tie_word_embeddings
            else self.weights.matrix("lm_head.weight", spec.vocab_size, spec.hidden_size)
        )
        self.lm_head = Linear(output, two_terms=True)

    def __call__(
        self, tokens: Value, steps: Mapping[str, AttentionInputs], return_n_logits: Value
    ) -> dict[str, Value]:
        """Append the whole model; returns the outputs by name, in the order in which the graph returns them.

        Args:
            tokens: Ids.
            steps: What layers share, by the name of their rotary embedding.
            return_n_logits: Rows per request of `VARIABLE`.
        """
        first = next(iter(steps.values()))
        offsets, adapters = first.row_offsets, first.adapters
        h = self.embedding(tokens, adapters)
        layers = [h]
        subgraphs: dict[object, Graph] = {}
        for layer in range(self.spec.num_layers):
            prefix, rope = f"layers.{layer}.", self.spec.rope_name(layer)
            step = steps[rope]
            is_last_only = self._needs_last_rows_only and layer == self.spec.num_layers - 1
            if self.spec.use_subgraphs:
                key = (self.weights.scoped(prefix).formats(), self.spec.window_of(layer), rope, is_last_only)
                if key not in subgraphs:
                    subgraphs[key] = self._block_graph(f"layer_{len(subgraphs)}", h, step, layer, is_last_only)
                operands = (step.angles, step.row_offsets, *step.cache.operands.values())
                operands += () if adapters is None else adapters.operands[1:]
                (h,) = h.graph.call(subgraphs[key], h, *operands, prefix=prefix, layer=layer)
            else:
                block = TransformerBlock.declare(self.spec, self.weights.scoped(prefix), layer)
                h = block(h, step, layer, is_last_only=is_last_only)
            layers.append(h)
        return self._tail(h, layers, offsets, return_n_logits, adapters)

    @property
    def _needs_last_rows_only(self) -> bool:
        """Whether everything that is returned comes from the requests' last rows."""
        states = (ReturnHiddenStates.NONE, ReturnHiddenStates.LAST, ReturnHiddenStates.LAST_PER_DEVICE)
        return self.spec.return_logits is ReturnLogits.LAST_TOKEN and self.spec.return_hidden_states in states

    def _block_graph(self, name: str, h: Value, step: AttentionInputs, layer: int, is_last_only: bool) -> Graph:
        adapters = step.adapters
        operands = (h, step.angles, step.row_offsets, *step.cache.operands.values())
        names = ["h", "angles", "input_row_offsets", *step.cache.operands]
        num_cache = len(step.cache.operands)
        if adapters is not None:
            operands += adapters.operands[1:]
            names += ["lora_ids", "lora_grouped_offsets"]
        block = TransformerBlock.declare(self.spec, self.weights.scoped(f"layers.{layer}.").relative(), layer)
        with Graph(name, [value.type for value in operands], input_names=names) as graph:
            inner, angles, offsets, *rest = graph.inputs
            if adapters is not None:
                ids, grouped_offsets = rest[num_cache:]
                adapters = AdapterValues(offsets, ids, grouped_offsets, adapters.max_rank)
            inputs = AttentionInputs(angles, offsets, KVCacheValues(*rest[:num_cache]), adapters)
            graph.output(block(inner, inputs, 0, is_last_only=is_last_only))
        return graph

    def _tail(
        self, h: Value, layers: list[Value], offsets: Value, count: Value, adapters: AdapterValues | None
    ) -> dict[str, Value]:
        logits_mode = self.spec.return_logits
        normalized = None
        if logits_mode is ReturnLogits.ALL or self._returns_normalized:
            normalized = self.norm(h)  # of every row, so the last ones are gathered after it: the same bits either way
        outputs: dict[str, Value] = {}
        if logits_mode is ReturnLogits.ALL:
            assert normalized is not None
            logits = self._logits(normalized, adapters)
            outputs["next_token_logits"] = ops.gather_last(logits, offsets)
            outputs["logits"] = logits
            outputs["logit_offsets"] = offsets
        elif normalized is not None:
            outputs["next_token_logits"] = self._logits(ops.gather_last(normalized, offsets), adapters)
        else:
            outputs["next_token_logits"] = self._logits(self.norm(self._last_rows(h, offsets)), adapters)
        if logits_mode is ReturnLogits.VARIABLE:
            rows = ops.gather_variable(h, offsets, count)
            outputs["logits"] = self._logits(self.norm(rows), adapters)
            outputs["logit_offsets"] = ops.variable_offsets(offsets, count)
        states = self._hidden_states(h, layers, normalized, offsets)
        if states is not None:
            outputs["hidden_states"] = states
        return outputs

    @property
    def _returns_normalized(self) -> bool:
        """Whether the output of the final norm is returned for every row."""
        spec = self.spec
        is_chosen = spec.return_hidden_states is ReturnHiddenStates.EAGLE3 and spec.num_layers in spec.selected_layers
        return is_chosen or spec.return_hidden_states is ReturnHiddenStates.ALL_NORMALIZED

    def _last_rows(self, h: Value, offsets: Value) -> Value:
        return h if self._needs_last_rows_only else ops.gather_last(h, offsets)

    def _logits(self, normalized: Value, adapters: AdapterValues | None) -> Value:
        (logits,) = update(normalized, (self.lm_head(normalized),), ("lm_head",), adapters, MODEL_LAYER)
        if self.spec.logits_scaling != 1:
            logits = ops.divide(logits, self.spec.logits_scaling)
        return logits if self.spec.logits_softcap is None else ops.softcap(logits, self.spec.logits_softcap)

    def _hidden_states(self, h: Value, layers: list[Value], normalized: Value | None, offsets: Value) -> Value | None:
        match self.spec.return_hidden_states:
            case ReturnHiddenStates.NONE:
                return None
            case ReturnHiddenStates.LAST | ReturnHiddenStates.LAST_PER_DEVICE:
                return self._last_rows(h, offsets)
            case ReturnHiddenStates.ALL:
                return h
            case ReturnHiddenStates.ALL_NORMALIZED:
                return normalized
            case ReturnHiddenStates.EAGLE3:
                chosen = [*layers, *([] if normalized is None else [normalized])]
                return ops.concat_columns(*(chosen[layer + 1] for layer in self.spec.selected_layers))


_ADAPTER_INPUTS: Final[dict[str, tuple[DType, tuple[Any, ...]]]] = {
    "lora_ids": (DType.int32, ("num_groups",)),
    "lora_ranks": (DType.uint32, ("num_groups",)),
    "lora_grouped_offsets": (DType.uint32, (Dim("num_groups", 1),)),
    "num_active_loras": (DType.int64, (1,)),
    "lora_end_idx": (DType.int64, ("num_adapter_rows",)),
    "batch_seq_len": (DType.int64, (1,)),
    "lora_ids_kv": (DType.int32, ("num_kv_groups",)),
    "lora_grouped_offsets_kv": (DType.uint32, (Dim("num_kv_groups", 1),)),
}


def build_decoder_graph(spec: DecoderSpec, weights: Mapping[str, WeightData]) -> Graph:
    """The graph of a decoder.

    Inputs, in order: `tokens` int64 `[T]`, `input_row_offsets` uint32 `[B + 1]`, `return_n_logits` int64 `[1]`,
    `kv_blocks` `[blocks, 2, L, P, Nkv, D]` of the cache's type, `cache_lengths` uint32 `[B]`, `lookup_table` uint32
    `[B, max_pages]`, `max_lengths` uint32 `[steps, 2]`, of an int8 cache `kv_scales` float32
    `[blocks, 2, L, P, Nkv, 1]`, and, optional, `request_lengths` uint32 `[B]`: the length that
    decides each request's rotary frequencies (absent: cached plus new tokens).

    With `max_lora_rank` the eight inputs of adapters follow `return_n_logits`, in the order of `lora_call_order`.

    Outputs, in order: `next_token_logits` `[B, V]`; with `VARIABLE` or `ALL` also `logits` and `logit_offsets` (int64
    in steps of n; uint32, the row offsets themselves); `hidden_states` where asked for.

    Args:
        spec: Sizes and switches.
        weights: The checkpoint by internal name (`embed_tokens.weight`, `layers.0.self_attn.q_proj.weight`, …). Only
            shapes and formats are read.

    Raises:
        WeightsError: a weight is missing or has another shape.
        UnsupportedModelError: a weight is stored in a way that is not supported.
    """
    cache = spec.kv_params
    blocks = ("num_blocks", 2, cache.num_layers, cache.page_size, cache.n_kv_heads, cache.head_dim)
    scales = {"kv_scales": (DType.float32, (*blocks[:-1], 1))} if cache.dtype is DType.int8 else {}
    inputs: dict[str, tuple[DType, tuple[Any, ...]]] = {
        "tokens": (DType.int64, (TOTAL_SEQ_LEN,)),
        "input_row_offsets": (DType.uint32, (BATCH_SIZE + 1,)),
        "return_n_logits": (DType.int64, (1,)),
        **(_ADAPTER_INPUTS if spec.max_lora_rank else {}),
        "kv_blocks": (cache.dtype, blocks),
        "cache_lengths": (DType.uint32, (BATCH_SIZE,)),
        "lookup_table": (DType.uint32, (BATCH_SIZE, "max_pages")),
        "max_lengths": (DType.uint32, ("num_steps", 2)),
        **scales,
        "request_lengths": (DType.uint32, (BATCH_SIZE,)),
    }
    types = [TensorType(dtype, shape, cache.devices[0]) for dtype, shape in inputs.values()]
    model = Transformer(spec, weights)
    with Graph("decoder", types, input_names=list(inputs), num_optional_inputs=1) as graph:
        given = dict(zip(inputs, graph.inputs, strict=True))
        tokens, offsets, count = (given[name] for name in ("tokens", "input_row_offsets", "return_n_logits"))
        cache_lengths = given["cache_lengths"]
        cache_values = KVCacheValues(given["kv_blocks"], cache_lengths, given["lookup_table"], *map(given.get, scales))
        adapters = None
        if spec.max_lora_rank:
            adapters = AdapterValues(offsets, given["lora_ids"], given["lora_grouped_offsets"], spec.max_lora_rank)
        steps: dict[str, AttentionInputs] = {}
        for name, rope in spec.ropes.items():
            angles = ops.rope_angles(tokens, offsets, cache_lengths, rope, given["request_lengths"])
            steps[name] = AttentionInputs(angles, offsets, cache_values, adapters)
        outputs = model(tokens, steps, count)
        graph.output(*outputs.values(), names=list(outputs))
        graph.ignore_weights(_known_but_unused(spec))
    return graph


def _known_but_unused(spec: DecoderSpec) -> set[str]:
    """Names that checkpoints carry although their facts are elsewhere: in `spec.rope`, or in the tied embedding."""
    names = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
    names |= {f"layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(spec.num_layers)}
    return names | {"lm_head.weight"} if spec.tie_word_embeddings else names


def default_hidden_state_layers(num_layers: int) -> tuple[int, ...]:
    """The layers whose outputs an EAGLE-3 draft reads: those before layers 2, `num_layers / 2` and `num_layers - 3`.

    Source: Li et al. 2025 (EAGLE-3). In a model of few layers the same layer may be meant twice; it is returned once.
    """
    before = (2, num_layers // 2, num_layers - 3)
    return tuple(sorted({min(max(layer - 1, 0), num_layers - 1) for layer in before}))


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} of the decoder is {value!r}, expected {expected}")
