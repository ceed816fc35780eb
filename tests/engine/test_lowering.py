"""The flat program gives what the graph means: run by an interpreter over poisoned buffers, without kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from puna.dtype import DType
from puna.engine import reference
from puna.engine.lowering import lower
from puna.engine.memory_plan import live_ranges, plan_memory
from puna.engine.native_program import NativeExecutor
from puna.engine.reference import ReferenceExecutor
from puna.engine.registry import bind_weights
from puna.nn.decoder_spec import DecoderSpec, ReturnHiddenStates, ReturnLogits
from puna.nn.transformer import build_decoder_graph
from support.fake_native import FakeNative
from support.tiny_decoder import KNOBS, TinyCache, random_tokens, tiny_spec, tiny_weights

Array = np.ndarray[Any, Any]

HALF = (np.float32, np.float16)


def run_steps(executor: Any, graph: Any, spec: DecoderSpec, n: int = 1) -> list[Array]:
    """Three steps of three requests: mixed prompts, a chunk beside single tokens, single tokens."""
    cache = TinyCache.make(spec, 3, 16)
    tokens = random_tokens(spec, [9, 6, 4])
    results: list[Array] = []
    for cuts in ((0, 5), (5, 7), (7, 9)):
        parts = [tokens[0][slice(*cuts)], tokens[1][cuts[0] // 2 : cuts[1] // 2 + 1], tokens[2][: n + 1]]
        inputs = cache.inputs(parts, n)
        named = {value.name: array for value, array in zip(graph.inputs, inputs, strict=False)}
        batch, total = 3, inputs[0].size
        sizes = {"batch_size": batch, "total_seq_len": total, "num_logit_rows": batch * n}
        outputs = [
            np.full([s if isinstance(s, int) else sizes[s.name] + s.offset for s in v.shape], 77, v.dtype.to_numpy())
            for v in graph.outputs
        ]
        executor.run(named, outputs)
        results.extend(outputs)
        results.append(cache.blocks.astype(np.float32))
    return results


def native(graph: Any, weights: Any, codes: tuple[str, ...] = (), fuse: bool = True) -> tuple[Any, FakeNative]:
    fake = FakeNative(codes)
    executor = NativeExecutor(
        fake, graph, weights, precision="auto", variant="scalar", threads=1, fuse=fuse  # type: ignore[arg-type]
    )  # fmt: skip
    return executor, fake


@pytest.mark.parametrize("coded", [False, True], ids=["f32", "a8"])
@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS.keys())
def test_program_equals_reference(knobs: dict[str, Any], coded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny_spec(**knobs)
    weights = tiny_weights(spec, dtype=HALF[coded])
    n = 2 if spec.return_logits is ReturnLogits.VARIABLE else 1
    monkeypatch.setattr(reference, "CODE_FORMATS", {"F16"})
    graph = build_decoder_graph(spec, weights)
    bound = bind_weights(graph, weights)
    executor, fake = native(graph, bound, ("F16",))
    got = run_steps(executor, graph, spec, n)
    expected = run_steps(ReferenceExecutor(graph, bound, is_exact=False), graph, spec, n)
    assert {m.partner for m in fake.matrices} == {"a8" if coded else "f32"}
    # a code, or a cached half, may fall on the other side of a rounding boundary; the equalities have no tolerance
    is_half = spec.kv_params.dtype is not DType.float32
    tolerance = 0.08 if coded else 5e-3 if is_half else 1e-5
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=tolerance)

    inline = build_decoder_graph(tiny_spec(**knobs, use_subgraphs=False), weights)
    for variant in (native(inline, bound, ("F16",)), native(graph, bound, ("F16",), fuse=False)):
        for ours, theirs in zip(got, run_steps(variant[0], graph, spec, n), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_fusion_leaves_few_instructions() -> None:
    spec = tiny_spec(num_layers=3)
    weights = tiny_weights(spec, dtype=np.float16)
    graph = build_decoder_graph(spec, weights)
    executor, fake = native(graph, weights, ("F16",))
    layer, last = fake.programs[0].subs
    assert [op for op, _ in layer] == [
        "norm", "matmul", "rope_kv", "attention", "quantize", "matmul", "norm", "matmul", "glu", "matmul",
    ]  # fmt: skip
    assert [op for op, _ in last] == [
        "norm", "matmul", "rope_kv", "attention", "gather_rows", "gather_rows", "quantize", "matmul", "norm", "matmul",
        "glu", "matmul",
    ]  # fmt: skip
    assert [op for op, _ in fake.programs[0].main] == [
        "rope_angles", "embed", "call", "call", "call", "norm", "quantize", "matmul_out",
    ]  # fmt: skip
    assert [fields["sub"] for op, fields in fake.programs[0].main if op == "call"] == [0, 0, 1]
    assert [len(fields["weights"]) for op, fields in layer if op == "matmul"] == [3, 1, 2, 1]
    assert all(fields["out"] < 0 for op, fields in layer if op in ("norm", "glu"))
    residuals = [(fields["residual"], fields["out"]) for op, fields in layer if op == "matmul"]
    assert [residual >= 0 for residual, _ in residuals] == [False, True, False, True]
    assert all(residual in (-1, out) for residual, out in residuals)
    assert executor.report.num_instructions == 2 * 10 + 12 + 5


def test_arena_is_reused() -> None:
    spec = tiny_spec(num_layers=4)
    weights = tiny_weights(spec)
    lowered = lower(build_decoder_graph(spec, weights), lambda name: "f32")
    plan = plan_memory(lowered)
    widths = sorted(slot.width for slot in plan.slots if slot.rows == "T")
    # angles, residual stream, gate and up, and one more for what lives beside these
    assert widths == [16, 64, 96, 192]


@pytest.mark.parametrize("inline", [False, True])
def test_live_buffers_never_share_a_slot(inline: bool) -> None:
    spec = tiny_spec(num_layers=3, return_hidden_states=ReturnHiddenStates.EAGLE3, use_subgraphs=not inline)
    lowered = lower(build_decoder_graph(spec, tiny_weights(spec)), lambda name: "a8" if "mlp" in name else "f32")
    plan = plan_memory(lowered)
    ranges = live_ranges(lowered)
    buffers = list(ranges)
    assert set(plan.slot_of) == set(buffers)
    shared = 0
    for i, first in enumerate(buffers):
        slot = plan.slots[plan.slot_of[first]]
        assert (slot.rows, slot.kind) == (first.rows, first.kind) and slot.width >= first.width
        for second in buffers[i + 1 :]:
            if plan.slot_of[first] == plan.slot_of[second]:
                shared += 1
                assert all(b < c or d < a for a, b in ranges[first] for c, d in ranges[second])
    assert shared > 0


def test_layers_of_different_formats_have_their_own_subgraphs() -> None:
    spec = tiny_spec(num_layers=4, sliding_window=4, sliding_window_layers=frozenset({3}))
    weights = tiny_weights(spec)
    name = "layers.1.mlp.down_proj.weight"
    weights[name] = weights[name].astype(DType.float16)
    graph = build_decoder_graph(spec, weights)
    executor, fake = native(graph, weights, ("F16",))
    assert [fields["sub"] for op, fields in fake.programs[0].main if op == "call"] == [0, 1, 0, 2]
    got = run_steps(executor, graph, spec)
    inline = build_decoder_graph(
        tiny_spec(num_layers=4, sliding_window=4, sliding_window_layers=frozenset({3}), use_subgraphs=False), weights
    )
    for ours, theirs in zip(got, run_steps(native(inline, weights, ("F16",))[0], graph, spec), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_mixed_partners_in_one_layer() -> None:
    spec = tiny_spec()
    weights = tiny_weights(spec)
    for name in ("self_attn.k_proj", "mlp.up_proj"):
        full = f"layers.0.{name}.weight"
        weights[full] = weights[full].astype(DType.float16)
    graph = build_decoder_graph(spec, weights)
    results = [run_steps(native(graph, weights, ("F16",), fuse=fuse)[0], graph, spec) for fuse in (True, False)]
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_tied_embedding_is_packed_once() -> None:
    spec = tiny_spec(tie_word_embeddings=True)
    weights = tiny_weights(spec)
    executor, fake = native(build_decoder_graph(spec, weights), weights)
    assert len(fake.matrices) == sum(len(weight.shape) == 2 for weight in weights.values())
    program = fake.programs[0]
    (embed,) = [fields for op, fields in program.main if op == "embed"]
    (head,) = [fields for op, fields in program.main if op == "matmul_out"]
    assert program.weights[embed["weight"]] is program.weights[head["weights"][0]]
    assert executor.report.packed_bytes == sum(weight.nbytes for weight in weights.values())


def test_empty_step() -> None:
    spec = tiny_spec(return_logits=ReturnLogits.ALL)
    weights = tiny_weights(spec)
    graph = build_decoder_graph(spec, weights)
    cache = TinyCache.make(spec, 0, 4)
    inputs = cache.inputs([])
    named = {value.name: array for value, array in zip(graph.inputs, inputs, strict=False)}
    for executor in (native(graph, weights)[0], ReferenceExecutor(graph, weights, is_exact=False)):
        outputs = [np.zeros((0, 96), np.float32), np.zeros((0, 96), np.float32), np.full(1, 9, np.uint32)]
        executor.run(named, outputs)  # type: ignore[attr-defined]
        assert outputs[2].tolist() == [0]
