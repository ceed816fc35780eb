"""Low-rank updates in programs: against the reference executor, and by equality of bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from puna import _native
from puna.dtype import DType
from puna.engine import InferenceSession, Model
from puna.engine.adapters import AdapterKey, AdapterSlots, LowRank, PackedAdapter
from puna.engine.native_program import NativeExecutor
from puna.engine.registry import bind_weights
from puna.errors import UnsupportedModelError
from puna.graph.ops.lora import LAYER_TARGETS
from puna.graph.weights.weight_data import WeightData
from puna.nn.decoder_spec import DecoderSpec
from puna.nn.transformer import build_decoder_graph
from puna.pipelines.lora.routing import AdapterRouting
from support.random_blocks import quantized, random_weight
from support.tiny_decoder import KNOBS, TinyCache, random_tokens, tiny_spec, tiny_weights

Array = np.ndarray[Any, Any]
MAX_RANK = 20
VARIANTS = _native.supported_variants()


def sizes(spec: DecoderSpec) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of each product of a layer."""
    hidden, feed = spec.hidden_size, spec.intermediate_size
    width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    shapes = [(width, hidden), (kv_width, hidden), (kv_width, hidden), (hidden, width)]
    return dict(zip(LAYER_TARGETS, [*shapes, (feed, hidden), (feed, hidden), (hidden, feed)], strict=True))


def adapter(
    spec: DecoderSpec, rank: int, seed: int, dtype: Any = np.float32, targets: Any = None, size: float = 0.5
) -> PackedAdapter:
    """Random updates of all products, or of some."""
    random = np.random.default_rng(seed)
    shapes = {
        AdapterKey(layer, name): shape for layer in range(spec.num_layers) for name, shape in sizes(spec).items()
    }
    shapes |= {AdapterKey(-1, name): (spec.hidden_size, spec.vocab_size) for name in ("embed_tokens",)}
    shapes[AdapterKey(-1, "lm_head")] = (spec.vocab_size, spec.hidden_size)

    def weight(shape: tuple[int, int], scale: float) -> WeightData:
        return WeightData.from_numpy((random.standard_normal(shape) * scale).astype(dtype), "part")

    updates = {}
    for key, (outputs, inputs) in shapes.items():
        if targets is None or key.target in targets:
            shape = (inputs, rank) if key.target == "embed_tokens" else (rank, inputs)
            updates[key] = LowRank(weight(shape, inputs**-0.5), weight((outputs, rank), size), 0.7)
    return PackedAdapter(updates)


class Rig:
    """A decoder with and without adapters."""

    def __init__(self, spec: DecoderSpec, weights: Any, adapters: list[PackedAdapter], **options: Any) -> None:
        executor = options.pop("executor", "native")
        session = InferenceSession(**({"num_threads": 2, "precision": "float32"} | options))
        self.spec = spec
        self.plain = session.load(build_decoder_graph(spec, weights), weights, executor=executor)
        assert isinstance(self.plain, Model)
        self.slots = AdapterSlots(max(len(adapters), 1))
        for slot, item in enumerate(adapters):
            self.slots[slot] = item
        graph = build_decoder_graph(replace(spec, max_lora_rank=MAX_RANK), weights)
        self.model = self.plain.derive(graph, self.slots)

    def run(self, slots: list[int] | None, lengths: list[int], prompts: list[Array], cached: int = 0) -> list[Array]:
        """Two steps: the first tokens of each request, then the rest; outputs of both, and the pages."""
        cache = TinyCache.make(self.spec, len(lengths), max(lengths), 0)
        results: list[Array] = []
        for begin, end in ((0, 3), (3, None)):
            parts = [prompt[:length][begin:end] for prompt, length in zip(prompts, lengths, strict=True)]
            inputs = [np.asarray(item) for item in cache.inputs(parts, 1)]
            model = self.plain
            if slots is not None:
                model = self.model
                ranks = [0 if slot < 0 else self.slots[slot].rank for slot in slots]  # type: ignore[union-attr]
                routed = AdapterRouting.of(slots, ranks).inputs(inputs[1], len(self.slots))
                inputs[3:3] = [buffer.to_numpy() for buffer in routed.values()]
            results += [output.to_numpy() for output in model.execute(*inputs)]
        return [*results, cache.blocks.astype(np.float32)]


def make(knobs: dict[str, Any], **options: Any) -> tuple[DecoderSpec, list[PackedAdapter], Rig, list[Array]]:
    spec = tiny_spec(**knobs)
    adapters = [
        adapter(spec, 3, 1, ml_dtypes.bfloat16),
        adapter(spec, 20, 2, np.float16, {"self_attn.q_proj", "mlp.down_proj", "lm_head"}),
        adapter(spec, 16, 3),
    ]
    rig = Rig(spec, tiny_weights(spec), adapters, **options)
    return spec, adapters, rig, random_tokens(spec, [9, 5, 40, 7], 3)


CHOSEN = [
    *("plain", "stacked", "stacked_biases_clip", "clip_and_norm", "multipliers", "tied", "parallel", "row_norm"),
    *("gelu", "interleaved", "softcap", "half_cache", "int8_cache", "longrope", "all", "eagle3"),
]


@pytest.mark.parametrize("name", CHOSEN)
def test_native_is_the_reference(name: str) -> None:
    spec, _, rig, prompts = make(KNOBS[name])
    reference = make(KNOBS[name], executor="reference")[2]
    lengths = [9, 5, 40, 7]
    got, expected = (r.run([2, 0, 1, -1], lengths, prompts) for r in (rig, reference))
    bare = rig.run(None, lengths, prompts)
    assert not np.array_equal(got[0][:3], bare[0][:3])
    for ours, theirs in zip(got, expected, strict=True):
        if theirs.dtype == np.float32:
            scale = float(np.nanmax(np.abs(theirs)))
            tolerance = {DType.float32: 1e-5, DType.float16: 2e-3, DType.bfloat16: 2e-2}.get(spec.kv_params.dtype, 0.04)
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)
        else:
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["plain", "stacked_biases_clip", "multipliers", "parallel", "all", "tied"])
def test_a_row_depends_on_its_own_adapter_only(name: str, variant: str) -> None:
    _, _, rig, prompts = make(KNOBS[name], variant=variant)
    lengths = [9, 5, 40, 7]
    slots = [2, 0, 1, -1]
    together = rig.run(slots, lengths, prompts)
    for index, slot in enumerate(slots):
        alone = rig.run([slot] if slot >= 0 else None, [lengths[index]], [prompts[index]])
        for step in range(2):
            per_step = len(alone) // 2
            np.testing.assert_array_equal(together[step * per_step][index], alone[step * per_step][0])
    scalar = make(KNOBS[name], variant="scalar", num_threads=1)[2].run(slots, lengths, prompts)
    for ours, theirs in zip(together, scalar, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("format", ["Q8_0", "BF16"])
def test_an_adapter_of_zeros_changes_no_bit(format: str) -> None:
    spec = tiny_spec()
    weights = quantized(tiny_weights(spec), format)
    rig = Rig(spec, weights, [adapter(spec, 4, 1, size=0.0)], precision="auto")
    prompts = random_tokens(spec, [9, 5, 7], 3)
    bare = rig.run(None, [9, 5, 7], prompts)
    for ours, theirs in zip(rig.run([0, 0, -1], [9, 5, 7], prompts), bare, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["plain", "stacked", "clip_and_norm", "multipliers", "all"])
def test_fusion_and_subgraphs_change_no_bit(name: str) -> None:
    spec, _, rig, prompts = make(KNOBS[name])
    lengths, slots = [9, 5, 40, 7], [0, 0, 2, -1]
    expected = rig.run(slots, lengths, prompts)
    weights = tiny_weights(spec)
    for use_subgraphs, fuse in ((False, True), (True, False)):
        changed = replace(spec, use_subgraphs=use_subgraphs, max_lora_rank=MAX_RANK)
        graph = build_decoder_graph(changed, weights)
        executor = NativeExecutor(
            _native, graph, bind_weights(graph, weights), precision="float32", variant=_native.default_variant(),
            threads=2, fuse=fuse, adapters=rig.slots,
        )  # fmt: skip
        rig.model._executor = executor
        rig.model._graph = graph
        for ours, theirs in zip(rig.run(slots, lengths, prompts), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_slots_change_between_steps() -> None:
    _, adapters, rig, prompts = make({})
    first = rig.run([0], [9], prompts[:1])
    rig.slots[0], rig.slots[2] = adapters[2], None
    second = rig.run([0], [9], prompts[:1])
    assert not np.array_equal(first[0], second[0])
    rig.slots[1] = adapters[0]
    for ours, theirs in zip(rig.run([1], [9], prompts[:1]), first, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_identity_is_content() -> None:
    spec = tiny_spec()
    one, same, other = (adapter(spec, 4, seed) for seed in (1, 1, 2))
    assert one.content_id == same.content_id != other.content_id
    assert one.content_id != adapter(spec, 4, 1, np.float16).content_id
    assert one.rank == 4
    assert one.nbytes > 0


def test_blocks_are_no_matrices_of_an_adapter() -> None:
    blocks = random_weight(np.random.default_rng(0), "part", "Q8_0", 32, 64)
    with pytest.raises(UnsupportedModelError, match="Q8_0"):
        PackedAdapter({AdapterKey(0, "self_attn.q_proj"): LowRank(blocks, blocks, 1.0)})


BAD = {
    "lora_ids": (np.array([1], np.int32), "slot 1, which holds no adapter"),
    "lora_ranks": (np.array([5], np.uint32), "says 5 of slot 0, whose adapter has rank 4"),
    "lora_grouped_offsets": (np.array([0, 2], np.uint32), "ends of requests"),
    "num_active_loras": (np.array([2], np.int64), "must be 1, got 2"),
    "lora_end_idx": (np.array([1, 0, 0], np.int64), "begin with its length"),
    "batch_seq_len": (np.array([4], np.int64), "must be 3, got 4"),
    "lora_ids_kv": (np.array([0, 1], np.int32), "plus the 2 slots"),
    "lora_grouped_offsets_kv": (np.array([0, 3, 3], np.uint32), "its tail plus"),
}


@pytest.mark.parametrize("name", BAD)
def test_inputs_that_do_not_fit_are_refused(name: str) -> None:
    spec = tiny_spec()
    rig = Rig(spec, tiny_weights(spec), [adapter(spec, 4, 1)])
    rig.slots = AdapterSlots(2)
    rig.slots[0] = adapter(spec, 4, 1)
    rig.model = rig.plain.derive(build_decoder_graph(replace(spec, max_lora_rank=8), tiny_weights(spec)), rig.slots)
    cache = TinyCache.make(spec, 1, 3, 0)
    inputs = [np.asarray(item) for item in cache.inputs(random_tokens(spec, [3], 1), 1)]
    routed = {k: v.to_numpy() for k, v in AdapterRouting.of([0], [4]).inputs(inputs[1], 2).items()}
    value, message = BAD[name]
    routed[name] = value
    if name == "lora_ids":
        routed["lora_ids_kv"] = np.array([1, 3], np.int32)
    if name == "lora_grouped_offsets":
        routed |= {"lora_end_idx": np.array([2, 0]), "lora_grouped_offsets_kv": np.array([0, 2, 4], np.uint32)}
    with pytest.raises(ValueError, match=message):
        rig.model.execute(*inputs[:3], *routed.values(), *inputs[3:])


def test_an_adapter_of_other_sizes_is_refused() -> None:
    spec = tiny_spec()
    rig = Rig(spec, tiny_weights(spec), [adapter(tiny_spec(hidden_size=32), 4, 1)])
    with pytest.raises(ValueError, match="the product has"):
        rig.run([0], [5], random_tokens(spec, [5], 1))
    rig = Rig(spec, tiny_weights(spec), [adapter(spec, MAX_RANK + 1, 1)])
    with pytest.raises(ValueError, match=f"takes rank {MAX_RANK}"):
        rig.run([0], [5], random_tokens(spec, [5], 1))
