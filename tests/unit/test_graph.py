"""Graphs: types and shapes of every operation, its NumPy twin against worked figures, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from puna.dtype import DType
from puna.errors import DTypeError, ShapeError
from puna.graph import BATCH_SIZE, LOGIT_ROWS, TOTAL_SEQ_LEN, Dim, Graph, TensorType, Value, Weight, ops
from puna.graph.ops import KVCacheValues
from puna.graph.ops.op import Float32Array, Rounding
from puna.graph.quantization import QuantizationEncoding
from puna.nn.rotary_embedding import LongRoPEScalingParams, RotaryEmbedding

ROWS = TensorType(DType.float32, (TOTAL_SEQ_LEN, 4))
OFFSETS = TensorType(DType.uint32, (BATCH_SIZE + 1,))
LENGTHS = TensorType(DType.uint32, (BATCH_SIZE,))
TOKENS = TensorType(DType.int64, (TOTAL_SEQ_LEN,))
COUNT = TensorType(DType.int64, (1,))
Build = Callable[..., Value]


class Context:
    """Weights by name for the twins."""

    def __init__(self, *, coded: tuple[str, ...] = (), **weights: Any) -> None:
        self.weights, self.coded, self.layer = weights, coded, 0

    def weight(self, weight: Weight) -> Float32Array:
        return np.asarray(self.weights[weight.name], np.float32)

    def rounding(self, weight: Weight) -> Rounding:
        return "codes" if weight.name in self.coded else "none"

    def observe(self, weight: Weight, x: Float32Array) -> None:
        pass

    def scoped(self, prefix: str, layer: int) -> Context:
        inner = Context(coded=tuple(name.removeprefix(prefix) for name in self.coded))
        inner.weights = {name.removeprefix(prefix): value for name, value in self.weights.items()}
        inner.layer = self.layer + layer
        return inner


def build(types: list[TensorType], operation: Build) -> Graph:
    with Graph("test", types) as graph:
        graph.output(operation(*graph.inputs))
    return graph


def evaluate(types: list[TensorType], operation: Build, *inputs: Any, **weights: Any) -> np.ndarray[Any, Any]:
    context = weights.pop("context", None) or Context(**weights)
    return build(types, operation).evaluate(list(inputs), context)[0]


def weight(name: str, *shape: int, dtype: DType = DType.float32) -> Weight:
    return Weight(name, dtype, shape)


def f32(*rows: Any) -> Float32Array:
    return np.array(rows, np.float32)


def test_norms_match_worked_figures() -> None:
    x = f32((1, 2, 3, 4))
    rms = evaluate([ROWS], lambda x: ops.rms_norm(x, None, 1e-5), x)
    np.testing.assert_allclose(rms, [(0.365148, 0.730296, 1.095444, 1.460593)], atol=1e-5)
    layer = evaluate([ROWS], lambda x: ops.layer_norm(x, None, None, 1e-5), x)
    np.testing.assert_allclose(layer, [(-1.341635, -0.447212, 0.447212, 1.341635)], atol=1e-5)


def test_norm_weights_are_applied_after_normalization() -> None:
    x, w, b = f32((1, 2, 3, 4)), f32(2, 0, -1, 1), f32(0, 5, 0, 1)
    got = evaluate([ROWS], lambda x: ops.rms_norm(x, weight("w", 4), 1e-5), x, w=w)
    np.testing.assert_allclose(got, [(0.730296, 0, -1.095444, 1.460593)], atol=1e-5)
    got = evaluate([ROWS], lambda x: ops.layer_norm(x, weight("w", 4), weight("b", 4), 1e-5), x, w=w, b=b)
    np.testing.assert_allclose(got, [(-2.68327, 5, -0.447212, 2.341635)], atol=1e-5)


def rotate(interleaved: bool, x: Any, rot_dim: int = 4) -> np.ndarray[Any, Any]:
    rope = RotaryEmbedding(4, rot_dim, 10000.0)

    def operation(x: Value, tokens: Value, offsets: Value, lengths: Value) -> Value:
        angles = ops.rope_angles(tokens, offsets, lengths, rope)
        return ops.rope(x, angles, num_heads=1, head_dim=4, rot_dim=rot_dim, interleaved=interleaved)

    rows = f32(x)
    at_one = (np.zeros(1, np.int64), np.array([0, 1], np.uint32), np.array([1], np.uint32))
    return evaluate([ROWS, TOKENS, OFFSETS, LENGTHS], operation, rows, *at_one)[0]


def test_rotation_matches_worked_figures() -> None:
    np.testing.assert_allclose(rotate(False, (1, 2, 3, 4)), (-1.984111, 1.959901, 2.462378, 4.019800), atol=1e-5)
    np.testing.assert_allclose(rotate(True, (1, 2, 3, 4)), (-1.142640, 1.922076, 2.959851, 4.029800), atol=1e-5)


def test_the_two_pairings_differ_by_a_permutation() -> None:
    x = np.random.default_rng(0).standard_normal(4)
    order = [0, 2, 1, 3]
    np.testing.assert_allclose(rotate(True, x[order])[np.argsort(order)], rotate(False, x), atol=1e-6)


def test_elements_behind_rot_dim_pass() -> None:
    got = rotate(False, (1, 2, 3, 4), rot_dim=2)
    np.testing.assert_allclose(got, (np.cos(1) - 2 * np.sin(1), np.sin(1) + 2 * np.cos(1), 3, 4), atol=1e-5)


def test_angles_follow_position_and_request_length() -> None:
    rope = RotaryEmbedding(2, 2, 1e4, LongRoPEScalingParams([1.0], [2.0], 4, 16, attention_factor=1.5))
    types = [TOKENS, OFFSETS, LENGTHS, LENGTHS]
    tokens, offsets = np.zeros(3, np.int64), np.array([0, 2, 3], np.uint32)
    cached, lengths = np.array([3, 3], np.uint32), np.array([4, 5], np.uint32)

    def operation(tokens: Value, offsets: Value, cached: Value, *lengths: Value) -> Value:
        return ops.rope_angles(tokens, offsets, cached, rope, *lengths)

    got = evaluate(types, operation, tokens, offsets, cached, lengths)
    np.testing.assert_allclose(got[:, 0], 1.5 * np.cos([3, 4, 1.5]), atol=1e-6)
    np.testing.assert_allclose(got[:, 1], 1.5 * np.sin([3, 4, 1.5]), atol=1e-6)
    without = evaluate(types[:3], operation, tokens, offsets, cached)  # lengths are then 5 and 4
    np.testing.assert_allclose(without[:, 0], 1.5 * np.cos([1.5, 2, 3]), atol=1e-6)


def test_rows_of_logits_match_worked_figures() -> None:
    offsets = np.array([0, 3, 5, 9], np.uint32)
    x = np.arange(9, dtype=np.float32)[:, None].repeat(4, 1)
    count = np.array([2], np.int64)
    types = [ROWS, OFFSETS, COUNT]
    rows = evaluate(types, ops.gather_variable, x, offsets, count)
    assert rows[:, 0].tolist() == [1, 2, 3, 4, 7, 8]
    starts = evaluate(types[1:], ops.variable_offsets, offsets, count)
    assert starts.tolist() == [0, 2, 4, 6] and starts.dtype == np.int64
    last = evaluate(types[:2], ops.gather_last, x, offsets)
    assert last[:, 0].tolist() == [2, 4, 8]
    graph = build(types, ops.gather_variable)
    assert graph.outputs[0].shape == (LOGIT_ROWS, 4)
    assert build(types[:2], ops.gather_last).outputs[0].shape == (BATCH_SIZE, 4)


def test_elementwise() -> None:
    x, y = f32((1, -2, 3, -4)), f32((4, 3, 2, 1))
    np.testing.assert_array_equal(evaluate([ROWS, ROWS], ops.add, x, y), x + y)
    np.testing.assert_array_equal(evaluate([ROWS], lambda x: ops.scale(x, 0.1), x), x * np.float32(0.1))
    np.testing.assert_array_equal(evaluate([ROWS], lambda x: ops.divide(x, 3.0), x), x / np.float32(3))
    np.testing.assert_array_equal(evaluate([ROWS], lambda x: ops.clamp(x, 2.5), x), f32((1, -2, 2.5, -2.5)))
    gated = evaluate([ROWS, ROWS], ops.glu, x, y)
    np.testing.assert_allclose(gated, x / (1 + np.exp(-x)) * y, rtol=1e-6)
    assert evaluate([ROWS, ROWS], ops.glu, f32((-1e4, 0, 0, 0)), y)[0, 0] == 0


def test_columns() -> None:
    x, y = f32((1, 2, 3, 4)), f32((5, 6, 7, 8))
    assert evaluate([ROWS], lambda x: ops.slice_columns(x, 1, 3), x).tolist() == [[2, 3]]
    assert evaluate([ROWS, ROWS], ops.concat_columns, x, y).tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]


def test_matmul_and_embedding() -> None:
    random = np.random.default_rng(0)
    w, b, x = random.standard_normal((3, 4)), f32(1, 2, 3), f32((1, 2, 3, 4), (0, 1, 0, 1))
    got = evaluate([ROWS], lambda x: ops.matmul(x, weight("w", 3, 4), weight("b", 3)), x, w=w, b=b)
    np.testing.assert_allclose(got, x @ w.T + b, rtol=1e-5)
    rows = evaluate([TOKENS], lambda t: ops.embedding(t, weight("w", 3, 4)), np.array([2, 0, 2]), w=w)
    np.testing.assert_array_equal(rows, np.float32(w)[[2, 0, 2]])


def test_products_with_coded_weights_round_activations() -> None:
    random = np.random.default_rng(0)
    w, x = random.standard_normal((3, 32)), np.float32(random.standard_normal((2, 32)))
    wide = TensorType(DType.float32, (TOTAL_SEQ_LEN, 32))
    context = Context(coded=("w",), w=w)
    got = evaluate([wide], lambda x: ops.matmul(x, weight("w", 3, 32)), x, context=context)
    codes, scales, sums = ops.quantize_codes(x)
    assert codes.dtype == np.int8 and np.abs(codes).max(axis=1).tolist() == [127, 127]
    np.testing.assert_array_equal(sums[:, 0], codes.sum(axis=1))
    np.testing.assert_allclose(got, (codes * scales) @ w.T, rtol=1e-4, atol=1e-6)
    assert not np.allclose(got, x @ w.T, rtol=1e-5, atol=1e-6)


def test_codes_of_zeros_and_of_ties() -> None:
    x = np.zeros((1, 64), np.float32)
    x[0, 32:36] = (127, 0.5, 1.5, -2.5)
    codes, scales, sums = ops.quantize_codes(x)
    assert scales.tolist() == [[0, 1]] and codes[0, 32:36].tolist() == [127, 0, 2, -2] and sums.tolist() == [[0, 127]]
    with pytest.raises(ShapeError):
        ops.quantize_codes(np.zeros((1, 33), np.float32))


def attention(q: Any, k: Any, v: Any, splits: list[int], **options: Any) -> np.ndarray[Any, Any]:
    """One request whose tokens come in several steps; the outputs of all steps."""
    heads, kv_heads, dim = q.shape[1] // 2, k.shape[1] // 2, 2
    types = [
        TensorType(DType.float32, (TOTAL_SEQ_LEN, size)) for size in (heads * dim, kv_heads * dim, kv_heads * dim)
    ]
    cache_type = TensorType(DType.float32, ("blocks", 2, 1, 2, kv_heads, dim))
    table_type = TensorType(DType.uint32, (BATCH_SIZE, "pages"))

    def operation(q: Value, k: Value, v: Value, offsets: Value, *cache: Value) -> Value:
        place = KVCacheValues(*cache)
        ops.kv_store(k, v, offsets, place, layer=0, num_kv_heads=kv_heads, head_dim=dim)
        sizes = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": dim}
        return ops.paged_attention(q, offsets, place, layer=0, scale=0.5, **sizes, **options)

    graph = build([*types, OFFSETS, cache_type, LENGTHS, table_type], operation)
    blocks = np.full((4, 2, 1, 2, kv_heads, dim), np.nan, np.float32)
    table, results, cached = np.array([[2, 0, 3]], np.uint32), [], 0
    for size in splits:
        rows = slice(cached, cached + size)
        offsets, lengths = np.array([0, size], np.uint32), np.array([cached], np.uint32)
        results += graph.evaluate([q[rows], k[rows], v[rows], offsets, blocks, lengths, table], Context())
        cached += size
    return np.concatenate(results)


@pytest.mark.parametrize("window", [None, 1, 2, 5])
def test_attention_equals_its_definition_in_any_chunks(window: int | None) -> None:
    random = np.random.default_rng(0)
    q, k, v = (np.float32(random.standard_normal((5, width))) for width in (8, 4, 4))
    expected = np.zeros_like(q)
    for position in range(5):
        first = 0 if window is None else max(0, position - window + 1)
        for head in range(4):
            columns = slice(head // 2 * 2, head // 2 * 2 + 2)
            mine = slice(head * 2, head * 2 + 2)
            scores = np.exp(0.5 * k[first : position + 1, columns] @ q[position, mine])
            expected[position, mine] = scores @ v[first : position + 1, columns] / scores.sum()
    for splits in ([5], [3, 2], [1, 1, 1, 1, 1]):
        got = attention(q, k, v, splits, **({} if window is None else {"window": window}))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_calls_prefix_weights_and_count_layers() -> None:
    with Graph("inner", [ROWS]) as inner:
        inner.output(ops.rms_norm(inner.inputs[0], weight("w", 4), 1e-5))
    with Graph("outer", [ROWS]) as outer:
        (once,) = outer.call(inner, outer.inputs[0], prefix="a.")
        (twice,) = outer.call(inner, once, prefix="b.", layer=1)
        outer.output(twice)
    assert list(outer.weights) == ["a.w", "b.w"]
    x = f32((1, 2, 3, 4))
    context = Context(**{"a.w": f32(1, 1, 1, 1), "b.w": f32(2, 2, 2, 2)})
    (got,) = outer.evaluate([x], context)
    np.testing.assert_allclose(got, 2 * x / np.sqrt(7.5), rtol=1e-4)
    with pytest.raises(ShapeError):
        outer.call(inner)
    with pytest.raises(DTypeError):
        half = Graph("half", [TensorType(DType.float16, (TOTAL_SEQ_LEN, 4))])
        half.call(inner, half.inputs[0])


@pytest.mark.parametrize(
    ("types", "operation", "error"),
    [
        ([ROWS, TensorType(DType.float32, (TOTAL_SEQ_LEN, 5))], ops.add, ShapeError),
        ([ROWS, TensorType(DType.float32, (BATCH_SIZE, 4))], ops.glu, ShapeError),
        ([TensorType(DType.float16, (TOTAL_SEQ_LEN, 4))], lambda x: ops.scale(x, 2), DTypeError),
        ([TensorType(DType.float32, (TOTAL_SEQ_LEN,))], lambda x: ops.scale(x, 2), ShapeError),
        ([TensorType(DType.float32, (TOTAL_SEQ_LEN, "k"))], lambda x: ops.scale(x, 2), ShapeError),
        ([ROWS], lambda x: ops.slice_columns(x, 2, 5), ShapeError),
        ([ROWS], lambda x: ops.slice_columns(x, 2, 2), ShapeError),
        ([ROWS, TensorType(DType.float32, (BATCH_SIZE, 4))], ops.concat_columns, ShapeError),
        ([ROWS], lambda x: ops.rms_norm(x, weight("w", 5), 1e-5), ShapeError),
        ([ROWS], lambda x: ops.rms_norm(x, None, -1.0), ValueError),
        ([ROWS], lambda x: ops.matmul(x, weight("w", 3, 5)), ShapeError),
        ([ROWS], lambda x: ops.matmul(x, weight("w", 4)), ShapeError),
        ([ROWS], lambda x: ops.matmul(x, weight("w", 3, 4), weight("b", 4)), ShapeError),
        ([ROWS], lambda x: ops.embedding(x, weight("w", 3, 4)), DTypeError),
        ([ROWS, LENGTHS], ops.gather_last, None),
        ([ROWS, TOKENS], ops.gather_last, DTypeError),
        ([ROWS, OFFSETS, TOKENS], ops.gather_variable, ShapeError),
        ([ROWS], lambda x: ops.clamp(x, 0.0), ValueError),
        ([ROWS], lambda x: ops.divide(x, 0.0), ValueError),
        ([ROWS], lambda x: ops.scale(x, float("nan")), ValueError),
    ],
)
def test_what_does_not_fit_is_refused(types: list[TensorType], operation: Build, error: type[Exception] | None) -> None:
    if error is None:
        assert build(types, operation).outputs[0].shape == (Dim("batch_size", -1), 4)
        return
    with pytest.raises(error):
        build(types, operation)


def test_graph_refuses_misuse() -> None:
    with pytest.raises(ValueError, match="no outputs"), Graph("empty", [ROWS]):
        pass
    first, second = Graph("first", [ROWS]), Graph("second", [ROWS])
    with pytest.raises(ValueError, match="belongs to"):
        ops.add(first.inputs[0], second.inputs[0])
    with pytest.raises(ValueError, match="belongs to"):
        first.output(second.inputs[0])
    with pytest.raises(ValueError, match="different names"):
        Graph("twice", [ROWS, ROWS], input_names=["x", "x"])
    with pytest.raises(ValueError, match="cannot call itself"):
        first.call(first, first.inputs[0])
    ops.rms_norm(first.inputs[0], weight("w", 4), 1e-5)
    with pytest.raises(ValueError, match="declared as"):
        ops.rms_norm(first.inputs[0], weight("w", 4, dtype=DType.float16), 1e-5)
    first.output(first.inputs[0])
    with pytest.raises(ValueError, match="already has outputs"):
        first.output(first.inputs[0])


def test_types_and_weights_refuse_nonsense() -> None:
    with pytest.raises(ShapeError):
        TensorType(DType.float32, (-1,))
    with pytest.raises(ShapeError):
        TensorType(DType.float32, ("",))
    with pytest.raises(DTypeError):
        Weight("w", DType.float32, (1, 32), quantization_encoding=QuantizationEncoding.Q4_0)
    assert str(TensorType(DType.uint32, (BATCH_SIZE + 1, 2))) == "uint32[batch_size + 1, 2]"
