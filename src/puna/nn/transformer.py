"""The decoder: blocks, the tail that makes logits, and the graph of a whole model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from puna.dtype import DType
from puna.graph import BATCH_SIZE, TOTAL_SEQ_LEN, Graph, TensorType, Value, ops
from puna.graph.ops import KVCacheValues
from puna.nn.attention import Attention, AttentionInputs
from puna.nn.declarations import WeightDeclarations
from puna.nn.decoder_spec import DecoderSpec, ReturnHiddenStates, ReturnLogits, default_hidden_state_layers
from puna.nn.embedding import Embedding
from puna.nn.linear import Linear
from puna.nn.mlp import MLP
from puna.nn.norm import LayerNorm, Norm, RMSNorm

if TYPE_CHECKING:
    from puna.graph.weights.weight_data import WeightData

__all__ = [
    "DecoderSpec",
    "ReturnHiddenStates",
    "ReturnLogits",
    "Transformer",
    "TransformerBlock",
    "build_decoder_graph",
    "default_hidden_state_layers",
]


@dataclass(frozen=True)
class TransformerBlock:
    """`h = h + m * attention(norm_1(h)); h = h + m * mlp(norm_2(h))` with m the residual multiplier."""

    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: MLP
    residual_multiplier: float = 1.0

    @classmethod
    def declare(cls, spec: DecoderSpec, weights: WeightDeclarations, layer: int) -> TransformerBlock:
        """The module for the weights of one layer; `weights` is scoped to them."""
        return cls(
            _declare_norm(spec, weights, "input_layernorm"),
            _declare_attention(spec, weights.scoped("self_attn."), layer),
            _declare_norm(spec, weights, "post_attention_layernorm"),
            _declare_mlp(spec, weights.scoped("mlp.")),
            spec.residual_multiplier,
        )

    def __call__(self, h: Value, step: AttentionInputs, layer: int) -> Value:
        """Append the block: `[rows, H]` to `[rows, H]`."""
        h = self._residual(h, self.attention(self.attention_norm(h), step, layer))
        return self._residual(h, self.mlp(self.mlp_norm(h)))

    def _residual(self, h: Value, branch: Value) -> Value:
        return ops.add(h, branch if self.residual_multiplier == 1 else ops.scale(branch, self.residual_multiplier))


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
        self.norm = _declare_norm(spec, self.weights, "norm")
        self.lm_head = (
            Linear(self.embedding.weight)
            if spec.tie_word_embeddings
            else Linear.declare(self.weights, "lm_head", spec.vocab_size, spec.hidden_size)
        )

    def __call__(self, tokens: Value, step: AttentionInputs, return_n_logits: Value) -> dict[str, Value]:
        """Append the whole model; returns the outputs by name, in the order in which the graph returns them."""
        h = self.embedding(tokens)
        layers: list[Value] = []
        subgraphs: dict[object, Graph] = {}
        for layer in range(self.spec.num_layers):
            prefix = f"layers.{layer}."
            if self.spec.use_subgraphs:
                key = (self.weights.scoped(prefix).formats(), self.spec.window_of(layer))
                if key not in subgraphs:
                    subgraphs[key] = self._block_graph(f"layer_{len(subgraphs)}", h, step, layer)
                operands = (step.angles, step.row_offsets, *step.cache)
                (h,) = h.graph.call(subgraphs[key], h, *operands, prefix=prefix, layer=layer)
            else:
                h = TransformerBlock.declare(self.spec, self.weights.scoped(prefix), layer)(h, step, layer)
            layers.append(h)
        return self._tail(h, layers, step.row_offsets, return_n_logits)

    def _block_graph(self, name: str, h: Value, step: AttentionInputs, layer: int) -> Graph:
        operands = (h, step.angles, step.row_offsets, *step.cache)
        names = ["h", "angles", "input_row_offsets", *KVCacheValues._fields]
        block = TransformerBlock.declare(self.spec, self.weights.scoped(f"layers.{layer}.", is_relative=True), layer)
        with Graph(name, [value.type for value in operands], input_names=names) as graph:
            inner, angles, offsets, *cache = graph.inputs
            graph.output(block(inner, AttentionInputs(angles, offsets, KVCacheValues(*cache)), 0))
        return graph

    def _tail(self, h: Value, layers: list[Value], offsets: Value, count: Value) -> dict[str, Value]:
        logits_mode, states_mode = self.spec.return_logits, self.spec.return_hidden_states
        normalized = None
        if logits_mode is ReturnLogits.ALL or states_mode is ReturnHiddenStates.ALL_NORMALIZED:
            normalized = self.norm(h)  # of every row, so the last ones are gathered after it: the same bits either way
        outputs: dict[str, Value] = {}
        if logits_mode is ReturnLogits.ALL:
            assert normalized is not None
            logits = self._logits(normalized)
            outputs["next_token_logits"] = ops.gather_last(logits, offsets)
            outputs["logits"] = logits
            outputs["logit_offsets"] = offsets
        elif normalized is not None:
            outputs["next_token_logits"] = self._logits(ops.gather_last(normalized, offsets))
        else:
            outputs["next_token_logits"] = self._logits(self.norm(ops.gather_last(h, offsets)))
        if logits_mode is ReturnLogits.VARIABLE:
            rows = ops.gather_variable(h, offsets, count)
            outputs["logits"] = self._logits(self.norm(rows))
            outputs["logit_offsets"] = ops.variable_offsets(offsets, count)
        states = self._hidden_states(h, layers, normalized, offsets)
        if states is not None:
            outputs["hidden_states"] = states
        return outputs

    def _logits(self, normalized: Value) -> Value:
        logits = self.lm_head(normalized)
        return logits if self.spec.logits_scaling == 1 else ops.divide(logits, self.spec.logits_scaling)

    def _hidden_states(self, h: Value, layers: list[Value], normalized: Value | None, offsets: Value) -> Value | None:
        match self.spec.return_hidden_states:
            case ReturnHiddenStates.NONE:
                return None
            case ReturnHiddenStates.LAST | ReturnHiddenStates.LAST_PER_DEVICE:
                return ops.gather_last(h, offsets)
            case ReturnHiddenStates.ALL:
                return h
            case ReturnHiddenStates.ALL_NORMALIZED:
                return normalized
            case ReturnHiddenStates.EAGLE3:
                return ops.concat_columns(*(layers[layer] for layer in self.spec.selected_layers))


def _declare_norm(spec: DecoderSpec, weights: WeightDeclarations, name: str) -> Norm:
    """The norm that the decoder uses, with the weights that it has."""
    is_rms = spec.norm_method == "rms_norm"
    has_weight = is_rms if spec.norm_has_weight is None else spec.norm_has_weight
    weight = weights.vector(f"{name}.weight", spec.hidden_size) if has_weight else None
    if is_rms:
        return RMSNorm(weight, spec.norm_eps)
    bias = weights.vector(f"{name}.bias", spec.hidden_size) if spec.norm_has_bias else None
    return LayerNorm(weight, bias, spec.norm_eps)


def _declare_attention(spec: DecoderSpec, weights: WeightDeclarations, layer: int) -> Attention:
    width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim

    def project(name: str, size: int) -> Linear:
        return Linear.declare(weights, name, size, spec.hidden_size, has_bias=spec.attention_bias)

    stacked = spec.stacked_qkv
    return Attention(
        qkv=project("qkv_proj", width + 2 * kv_width)
        if stacked
        else (project("q_proj", width), project("k_proj", kv_width), project("v_proj", kv_width)),
        output=Linear.declare(weights, "o_proj", spec.hidden_size, width, has_bias=spec.attention_output_bias),
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        rot_dim=spec.rope.rot_dim,
        is_interleaved=spec.interleaved_rope,
        multiplier=spec.attention_scale,
        clip=spec.clip_qkv,
        window=spec.window_of(layer),
    )


def _declare_mlp(spec: DecoderSpec, weights: WeightDeclarations) -> MLP:
    size = spec.intermediate_size

    def project(name: str, out_features: int, in_features: int) -> Linear:
        return Linear.declare(weights, name, out_features, in_features, has_bias=spec.mlp_bias)

    return MLP(
        gate_up=project("gate_up_proj", 2 * size, spec.hidden_size)
        if spec.stacked_mlp
        else (project("gate_proj", size, spec.hidden_size), project("up_proj", size, spec.hidden_size)),
        down=project("down_proj", spec.hidden_size, size),
        intermediate_size=size,
    )


def build_decoder_graph(spec: DecoderSpec, weights: Mapping[str, WeightData]) -> Graph:
    """The graph of a decoder.

    Inputs, in order: `tokens` int64 `[T]`, `input_row_offsets` uint32 `[B + 1]`, `return_n_logits` int64 `[1]`,
    `kv_blocks` `[blocks, 2, L, P, Nkv, D]` of the cache's type, `cache_lengths` uint32 `[B]`, `lookup_table` uint32
    `[B, max_pages]`, `max_lengths` uint32 `[steps, 2]`, and, optional, `request_lengths` uint32 `[B]`: the length that
    decides each request's rotary frequencies (absent: cached plus new tokens).

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
    inputs: dict[str, tuple[DType, tuple[Any, ...]]] = {
        "tokens": (DType.int64, (TOTAL_SEQ_LEN,)),
        "input_row_offsets": (DType.uint32, (BATCH_SIZE + 1,)),
        "return_n_logits": (DType.int64, (1,)),
        "kv_blocks": (cache.dtype, blocks),
        "cache_lengths": (DType.uint32, (BATCH_SIZE,)),
        "lookup_table": (DType.uint32, (BATCH_SIZE, "max_pages")),
        "max_lengths": (DType.uint32, ("num_steps", 2)),
        "request_lengths": (DType.uint32, (BATCH_SIZE,)),
    }
    types = [TensorType(dtype, shape, cache.devices[0]) for dtype, shape in inputs.values()]
    model = Transformer(spec, weights)
    with Graph("decoder", types, input_names=list(inputs), num_optional_inputs=1) as graph:
        tokens, offsets, count, kv_blocks, cache_lengths, lookup_table, _, request_lengths = graph.inputs
        angles = ops.rope_angles(tokens, offsets, cache_lengths, spec.rope, request_lengths)
        step = AttentionInputs(angles, offsets, KVCacheValues(kv_blocks, cache_lengths, lookup_table))
        outputs = model(tokens, step, count)
        graph.output(*outputs.values(), names=list(outputs))
        graph.ignore_weights(_known_but_unused(spec))
    return graph


def _known_but_unused(spec: DecoderSpec) -> set[str]:
    """Names that checkpoints carry although their facts are elsewhere: in `spec.rope`, or in the tied embedding."""
    names = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
    names |= {f"layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(spec.num_layers)}
    return names | {"lm_head.weight"} if spec.tie_word_embeddings else names
