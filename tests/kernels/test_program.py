"""Programs as a whole: building, checking, subprograms, inputs and outputs, trace."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from puna import _native
from support.ggml_blocks import random_blocks
from support.native_steps import VARIANTS, Cache, Request, Rig, bits, random_rows

Array = NDArray[Any]
VARIANT = VARIANTS[-1]


def matrix(rows: int, cols: int, seed: int = 0, format: str = "F32") -> _native.PackedMatrix:
    values = random_rows(rows, cols, seed)
    dtype = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[format]
    return _native.PackedMatrix(format, values.astype(dtype), rows, cols, threads=1)


def emit_matmul(program: _native.Program, x: int, width: int, weights: list[int], out: int, **fields: Any) -> None:
    defaults = {"out_col": 0, "biases": [-1] * len(weights), "clip": 0.0, "residual": -1, "multiplier": 1.0}
    program.emit(
        "matmul", **{**defaults, "x": x, "width": width, "weights": weights, "out": out, "two_terms": False, **fields}
    )


# ---- instructions that move rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["F32", "F16", "BF16"])
def test_embed_looks_rows_up_and_scales_them(format: str) -> None:
    table = matrix(9, 20, format=format)
    program = _native.Program(VARIANT)
    out = program.buffer("T", 80)
    program.emit("embed", weight=program.weight(table), out=out, scale=2.5)
    program.emit("copy_out", x=out, col=0, width=20, output=0, out_col=0, rows="T")
    program.finish()
    tokens = np.array([8, 0, 3, 3], np.int64)
    result = np.empty((4, 20), np.float32)
    program.execute({"tokens": tokens, "input_row_offsets": np.array([0, 4], np.uint32)}, [result], 2)
    assert bits(result) == bits(table.rows_f32(tokens) * np.float32(2.5))


def test_gathered_rows_and_offsets() -> None:
    x = random_rows(9, 5)
    rig = Rig(x, VARIANT)
    last, some = rig.buffer(5, "B"), rig.buffer(5, "R")
    rig.emit("gather_rows", x=rig.x, out=last, width=5, mode="last")
    rig.emit("gather_rows", x=rig.x, out=some, width=5, mode="variable")
    rig.output(last, 5, "B")
    rig.output(some, 5, "R")
    offsets = np.array([0, 2, 6, 9], np.uint32)
    results = rig.run({"input_row_offsets": offsets, "return_n_logits": np.array([2])}, threads=2)
    assert bits(results[0]) == bits(x[[1, 5, 8]])
    assert bits(results[1]) == bits(x[[0, 1, 4, 5, 7, 8]])

    program = _native.Program(VARIANT)
    program.emit("offsets_out", output=0, mode="variable")
    program.emit("offsets_out", output=1, mode="all")
    program.finish()
    variable, everything = np.empty(4, np.int64), np.empty(4, np.uint32)
    program.execute({"input_row_offsets": offsets, "return_n_logits": np.array([2])}, [variable, everything])
    np.testing.assert_array_equal(variable, [0, 2, 4, 6])
    np.testing.assert_array_equal(everything, offsets)


def test_several_columns_of_one_output() -> None:
    x = random_rows(4, 6)
    rig = Rig(x, VARIANT)
    rig.emit("copy_out", x=rig.x, col=4, width=2, output=0, out_col=0, rows="T")
    rig.emit("copy_out", x=rig.x, col=0, width=3, output=0, out_col=2, rows="T")
    rig.program.finish()
    result = np.empty((4, 5), np.float32)
    inputs = {"tokens": np.arange(4), "input_row_offsets": np.array([0, 4], np.uint32)}
    rig.program.execute(inputs, [result])
    assert bits(result) == bits(np.concatenate([x[:, 4:], x[:, :3]], axis=1))


@pytest.mark.parametrize("offsets", [[0], [0, 0], [0, 0, 0]])
def test_a_step_without_tokens_does_nothing(offsets: list[int]) -> None:
    rig = Rig(np.zeros((0, 8), np.float32), VARIANT)
    out = rig.buffer(8)
    rig.emit("norm", x=rig.x, out=out, out_a8=-1, kind="rms", eps=1e-5, weight=-1, bias=-1, width=8)
    emit_matmul(rig.program, out, 8, [rig.program.weight(matrix(8, 8))], rig.buffer(8))
    rig.emit(
        "attention",
        x=rig.x,
        q_col=0,
        out=out,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        layer=0,
        scale=1.0,
        window=0,
        softcap=0.0,
    )
    rig.output(out, 8)
    cache = Cache([Request(3, 0)] * (len(offsets) - 1), head_dim=8)
    inputs = {**cache.inputs(), "input_row_offsets": np.array(offsets, np.uint32)}
    assert rig.run(inputs, threads=2)[0].shape == (0, 8)


# ---- products ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_products_with_bias_clip_multiplier_and_residual(variant: str, threads: int) -> None:
    x = random_rows(6, 40)
    first, second = matrix(33, 40, 1), matrix(20, 40, 2)
    bias = random_rows(1, 20, 3)[0]
    plain = _native.matmul([first, second], x, variant, 1)
    residual = random_rows(6, 53, 4)

    joined = np.concatenate([x, residual], axis=1)
    rig = Rig(joined, variant)
    operand, total = rig.buffer(40), rig.buffer(53)
    rig.emit("copy", x=rig.x, col=0, out=operand, out_col=0, width=40)
    rig.emit("copy", x=rig.x, col=40, out=total, out_col=0, width=53)
    weights = [rig.program.weight(first), rig.program.weight(second)]
    emit_matmul(
        rig.program,
        operand,
        40,
        weights,
        total,
        biases=[-1, rig.vector(bias)],
        clip=1.5,
        residual=total,
        multiplier=0.22,
    )
    rig.output(total, 53)
    result = rig.run(threads=threads)[0]
    product = plain + np.concatenate([np.zeros(33, np.float32), bias])
    limited = np.clip(product, -1.5, 1.5).astype(np.float64)
    wanted = (residual + np.float64(np.float32(0.22)) * limited).astype(np.float32)
    np.testing.assert_array_max_ulp(result, wanted, maxulp=1)


def test_a_fused_sum_has_the_bits_of_the_separate_one() -> None:
    x, weight = random_rows(5, 24), matrix(24, 24, 1)
    results = []
    for fused in (True, False):
        rig = Rig(x, VARIANT)
        y = rig.buffer(24)
        index = rig.program.weight(weight)
        if fused:
            emit_matmul(rig.program, rig.x, 24, [index], y, residual=rig.x, multiplier=0.7)
        else:
            emit_matmul(rig.program, rig.x, 24, [index], y)
            rig.emit("add", a=rig.x, b=y, out=y, width=24, multiplier=0.7)
        rig.output(y, 24)
        results.append(bits(rig.run()[0]))
    assert results[0] == results[1]


def test_products_into_columns() -> None:
    x = random_rows(3, 16)
    first, second = matrix(5, 16, 1), matrix(18, 16, 2)
    rig = Rig(x, VARIANT)
    out = rig.buffer(30)
    emit_matmul(rig.program, rig.x, 16, [rig.program.weight(second)], out, out_col=7)
    emit_matmul(rig.program, rig.x, 16, [rig.program.weight(first)], out, out_col=1)
    rig.output(out, 5, col=1)
    rig.output(out, 18, col=7)
    results = rig.run()
    assert bits(results[0]) == bits(_native.matmul([first], x, VARIANT))
    assert bits(results[1]) == bits(_native.matmul([second], x, VARIANT))


# ---- subprograms ---------------------------------------------------------------------------------------------------


def layered(variant: str, use_calls: bool, kv_type: str = "float32") -> tuple[Array, Array, Array]:
    """Two layers of norm, product, rope and attention, as calls of a subprogram or written out."""
    heads, dim, width = 2, 16, 32
    requests = [Request(3, 2), Request(0, 4)]
    cache = Cache(requests, layers=3, num_kv_heads=1, head_dim=dim, dtype=kv_type)
    rig = Rig(random_rows(6, width), variant)
    program = rig.program
    rope = program.rope("fixed", {"inv_freq": np.full(8, 0.3, np.float32), "attention_factor": 1.0})
    normed, qkv, mixed, angles = rig.buffer(width), rig.buffer(64), rig.buffer(width), rig.buffer(dim)
    weights = []
    for layer in range(2):
        weights.append(rig.vector(random_rows(1, width, layer)[0]))
        program.weight(matrix(64, width, 10 + layer))
        program.weight(matrix(width, width, 20 + layer))

    def emit_layer(base: int, layer: int) -> None:
        kind = {"kind": "rms", "eps": 1e-5, "weight": base, "bias": -1, "width": width}
        program.emit("norm", x=rig.x, out=normed, out_a8=-1, **kind)
        emit_matmul(program, normed, width, [base + 1], qkv)
        columns = {"q_col": 0, "k_col": 32, "v_col": 48, "num_heads": heads, "num_kv_heads": 1, "head_dim": dim}
        program.emit("rope_kv", x=qkv, rot_dim=dim, interleaved=True, angles=angles, layer=layer, **columns)
        sizes = {"num_heads": heads, "num_kv_heads": 1, "head_dim": dim, "layer": layer}
        sizes |= {"scale": 0.25, "window": 0, "softcap": 0.0}
        program.emit("attention", x=qkv, q_col=0, out=mixed, **sizes)
        emit_matmul(program, mixed, width, [base + 2], rig.x, residual=rig.x, multiplier=0.5)

    if use_calls:
        program.begin_sub("layer")
        emit_layer(0, 1)
        sub = program.end_sub()
    program.emit("rope_angles", rope=rope, out=angles)
    for layer in range(2):
        if use_calls:
            program.emit("call", sub=sub, weight_base=weights[layer], layer=layer)
        else:
            emit_layer(weights[layer], layer + 1)
    rig.output(rig.x, width)
    result = rig.run(cache.inputs(), threads=2)[0]
    return result, cache.blocks, cache.table


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_called_subprogram_has_the_bits_of_the_written_out_one(variant: str) -> None:
    called, called_cache, table = layered(variant, True)
    written, written_cache, _ = layered(variant, False)
    assert bits(called) == bits(written)
    assert bits(called_cache[table[0]]) == bits(written_cache[table[0]])


def test_every_variant_has_the_same_bits() -> None:
    for kv_type in ("float32", "float16", "bfloat16"):
        assert len({bits(layered(variant, True, kv_type)[0]) for variant in VARIANTS}) == 1


# ---- trace ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["F32", "Q8_0"])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_product_goes_straight_to_an_output(format: str, rows: int) -> None:
    """The bits of a product that is copied there, beside what another instruction writes."""
    rig = Rig(random_rows(rows, 64), VARIANT)
    stored = random_blocks(np.random.default_rng(1), format, 40, 64)
    weight = rig.program.weight(_native.PackedMatrix(format, stored, 40, 64, threads=1))
    operand = rig.x
    if format == "Q8_0":
        operand = rig.program.buffer("T", _native.a8_row_bytes(64))
        rig.emit("quantize", x=rig.x, col=0, width=64, out_a8=operand, two_terms=False)
    y = rig.buffer(40)
    emit_matmul(rig.program, operand, 64, [weight], y)
    rig.output(y, 40)
    options = {"biases": [-1], "clip": 0.0, "multiplier": 1.0, "two_terms": False}
    rig.emit("matmul_out", x=operand, width=64, weights=[weight], output=1, out_col=2, **options)
    rig.emit("copy_out", x=rig.x, col=0, width=2, output=1, out_col=0, rows="T")
    rig.program.finish()
    copied, direct = np.empty((rows, 40), np.float32), np.empty((rows, 42), np.float32)
    inputs = {"tokens": np.arange(rows), "input_row_offsets": np.array([0, rows], np.uint32)}
    rig.program.execute(inputs, [copied, direct], 2)
    assert bits(np.ascontiguousarray(direct[:, 2:])) == bits(copied)
    assert bits(np.ascontiguousarray(direct[:, :2])) == bits(np.ascontiguousarray(random_rows(rows, 64)[:, :2]))


def test_trace_has_a_record_for_every_instruction_run() -> None:
    program = _native.Program(VARIANT)
    x, y = program.buffer("T", 4 * 64), program.buffer("T", 4 * 64)
    weight = program.weight(matrix(64, 64))
    program.begin_sub("layer")
    emit_matmul(program, x, 64, [0], y, name="projection")
    sub = program.end_sub()
    program.emit("embed", weight=weight, out=x, scale=1.0)
    for layer in range(3):
        program.emit("call", sub=sub, weight_base=weight, layer=layer)
    program.finish()
    inputs = {"tokens": np.arange(5), "input_row_offsets": np.array([0, 5], np.uint32)}
    program.execute(inputs, [])
    assert program.trace_records() == []
    program.trace(True)
    program.execute(inputs, [], 2)
    records = program.trace_records()
    assert [(r["op"], r["name"], r["layer"]) for r in records] == [
        ("embed", "embed", 0),
        *(("matmul", "projection", layer) for layer in range(3)),
    ]
    assert all(r["seconds"] > 0 for r in records)
    assert records[1]["flops"] == 2 * 5 * 64 * 64
    assert records[1]["bytes"] == matrix(64, 64).nbytes + 2 * 5 * 64 * 4
    program.trace(False)
    assert program.trace_records() == []
