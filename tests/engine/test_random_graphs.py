"""Random graphs that share, reuse, slice and join values in every order: lowering and memory planning keep them apart.

Graphs are drawn from a seed. Values with several readers, results that outlive the calls which overwrite their place,
operands that are columns of other values: what a decoder never does, and what a program must still do right.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from puna.dtype import DType
from puna.engine import reference
from puna.engine.adapters import AdapterKey
from puna.engine.native_program import NativeExecutor
from puna.engine.reference import ReferenceExecutor
from puna.graph import BATCH_SIZE, TOTAL_SEQ_LEN, Dim, Graph, TensorType, Value, Weight, ops
from puna.graph.ops import AdapterValues
from puna.graph.ops.lora import target_number
from puna.graph.weights.weight_data import WeightData
from support.fake_native import FakeNative

WIDTHS = (32, 64)
NAMES = {f"{kind}_{cols}_{rows}": (kind, rows, cols) for kind in "ac" for rows in WIDTHS for cols in WIDTHS}


TARGETS = {32: "self_attn.q_proj", 64: "self_attn.k_proj"}


class FakeSlots:
    """One adapter in slot 0. The operand's width is the layer: 32 in layer 0, 64 in layer 1."""

    def __init__(self) -> None:
        random = np.random.default_rng(8)
        self.updates = {}
        for layer, cols in enumerate(WIDTHS):
            for rows, name in TARGETS.items():
                a, b = (random.standard_normal(shape).astype(np.float32) / 8 for shape in ((5, cols), (rows, 5)))
                self.updates[layer, target_number(name)] = (a, b, 0.5)
        self.native = {0: self.updates}

    def __getitem__(self, slot: int) -> Any:
        return self

    def arrays(self, key: AdapterKey) -> Any:
        return self.updates[key.layer, target_number(key.target)]


def make_weights() -> dict[str, WeightData]:
    random = np.random.default_rng(7)
    found = {"table": random.standard_normal((20, 32)).astype(np.float32)}
    for prefix in ("", "one.", "two."):
        for name, (kind, rows, cols) in NAMES.items():
            dtype = np.float16 if kind == "c" else np.float32
            found[prefix + name] = (random.standard_normal((rows, cols)) / 8).astype(dtype)
    return {name: WeightData.from_numpy(values, name) for name, values in found.items()}


def append_random(
    random: np.random.Generator, pool: list[Value], calls: list[Graph], adapters: AdapterValues | None = None
) -> None:
    """Append one operation on values of the pool and put its results there."""

    def pick(width: int | None = None) -> Value:
        fitting = [value for value in pool if width is None or value.type.width == width]
        if not fitting:
            return ops.concat_columns(pick(32), pick(32))
        return fitting[random.integers(len(fitting))]

    x = pick()
    width = x.type.width
    match random.integers(11 if calls else 10):
        case 0:
            pool.append(ops.rms_norm(x, None, 1e-3))
        case 1:
            pool.append(ops.add(x, pick(width)))
        case 2:
            pool.append(ops.add(pick(width), ops.scale(x, 0.5)))
        case 3:
            pool.append(ops.clamp(x, 0.7))
        case 4:
            pool.append(ops.divide(x, 3.0))
        case 5:
            pool.append(ops.glu(x, pick(width)))
        case 6:
            pool.append(ops.concat_columns(pick(32), pick(32)))
        case 7 if width == 64:
            start = int(random.integers(2)) * 32
            pool.append(ops.slice_columns(x, start, start + 32))
        case 9 if adapters is not None:
            products = [pick(), pick()] if random.integers(2) else [pick()]
            targets = [TARGETS[product.type.width] for product in products]
            pool.extend(ops.lora(x, products, targets, adapters, int(width == 64)))
        case 10:
            graph = calls[random.integers(len(calls))]
            operands = [pick(value.type.width) for value in graph.inputs]
            pool.extend(x.graph.call(graph, *operands, prefix=("one.", "two.")[random.integers(2)]))
        case _:
            rows = WIDTHS[random.integers(2)]
            name = f"{'ac'[random.integers(2)]}_{width}_{rows}"
            kind = DType.float16 if name.startswith("c") else DType.float32
            y = ops.matmul(x, Weight(name, kind, (rows, width)))
            y = ops.clamp(y, 0.9) if random.integers(2) else y
            y = ops.scale(y, 0.25) if random.integers(2) else y
            pool.append(ops.add(pick(rows), y) if random.integers(2) else y)


def random_subgraph(random: np.random.Generator, name: str) -> Graph:
    widths = [WIDTHS[random.integers(2)] for _ in range(random.integers(1, 4))] + [32]
    with Graph(name, [TensorType(DType.float32, (TOTAL_SEQ_LEN, width)) for width in widths]) as graph:
        pool = list(graph.inputs)
        for _ in range(random.integers(1, 6)):
            append_random(random, pool, [])
        count = min(len(pool), int(random.integers(1, 3)))
        graph.output(*(pool[-1 - i] for i in range(count)))
    return graph


def random_graph(seed: int) -> Graph:
    random = np.random.default_rng(seed)
    types = [TensorType(DType.int64, (TOTAL_SEQ_LEN,)), TensorType(DType.uint32, (BATCH_SIZE + 1,))]
    types += [TensorType(DType.int32, ("groups",)), TensorType(DType.uint32, (Dim("groups", 1),))]
    names = ["tokens", "input_row_offsets", "lora_ids", "lora_grouped_offsets"]
    calls = [random_subgraph(random, f"sub{i}") for i in range(2)]
    with Graph("random", types, input_names=names) as graph:
        adapters = AdapterValues(*graph.inputs[1:], max_rank=5)
        pool = [ops.embedding(graph.inputs[0], Weight("table", DType.float32, (20, 32)))]
        for _ in range(random.integers(4, 16)):
            append_random(random, pool, calls, adapters)
        chosen = [pool[random.integers(len(pool))] for _ in range(3)]
        graph.output(*chosen, ops.gather_last(pool[-1], graph.inputs[1]))
    return graph


@pytest.mark.parametrize("seed", range(200))
def test_random_graphs(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "CODE_FORMATS", {"F16"})
    graph, every = random_graph(seed), make_weights()
    weights = {name: every[name] for name in graph.weights}
    inputs = {"tokens": np.array([3, 7, 7, 19, 0]), "input_row_offsets": np.array([0, 2, 5], np.uint32)}
    inputs |= {"lora_ids": np.array([0], np.int32), "lora_grouped_offsets": np.array([0, 2], np.uint32)}
    slots: Any = FakeSlots()
    results: list[list[Any]] = []
    for fuse in (True, False):
        executor = NativeExecutor(
            FakeNative(("F16",)),  # type: ignore[arg-type]
            graph,
            weights,
            precision="auto",
            variant="scalar",
            threads=1,
            fuse=fuse,
            adapters=slots,
        )
        results.append(run(executor, graph, inputs))
    for fused, plain in zip(*results, strict=True):
        np.testing.assert_array_equal(fused, plain)
    expected = run(ReferenceExecutor(graph, weights, is_exact=False, adapters=slots), graph, inputs)
    for ours, theirs in zip(results[0], expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.02 * max(1.0, float(np.abs(theirs).max())))


def run(executor: Any, graph: Graph, inputs: dict[str, Any]) -> list[Any]:
    outputs = [np.zeros((2 if v.shape[0] == BATCH_SIZE else 5, v.type.width), np.float32) for v in graph.outputs]
    executor.run(inputs, outputs)
    return outputs
