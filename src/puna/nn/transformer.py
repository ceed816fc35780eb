"""The decoder as a graph, from token ids to logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from puna.dtype import DType
from puna.graph import BATCH_SIZE, TOTAL_SEQ_LEN, Dim, Graph, TensorType, Value, ops
from puna.graph.ops import AdapterValues, KVCacheValues
from puna.graph.ops.lora import MODEL_LAYER
from puna.nn.attention import AttentionInputs
from puna.nn.declarations import WeightDeclarations
from puna.nn.decoder_spec import DecoderSpec, ReturnHiddenStates, ReturnLogits
from puna.nn.embedding import Embedding
from puna.nn.linear import Linear
from puna.nn.lora import update
from puna.nn.norm import declare_norm
from puna.nn.transformer_block import TransformerBlock

if TYPE_CHECKING:
    from puna.graph.weights.weight_data import WeightData

__all__ = ["Transformer", "build_decoder_graph"]


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

    def __call__(self, tokens: Value, steps: Mapping[str, AttentionInputs], return_n_logits: Value) -> dict[str, Value]:
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
