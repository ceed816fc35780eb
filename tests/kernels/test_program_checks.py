"""What a program refuses while it is built: wrong fields, buffers, widths, weights, order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from puna import _native
from support.native_steps import VARIANTS

VARIANT = VARIANTS[-1]


def build(change: Callable[[_native.Program], object]) -> None:
    """A program with buffers 0 (T, 64 columns), 1 (T, 32), 2 (B, 64), 3 (int8 of 64), weights 0 (vector of 64), 1
    (F32 64 x 64), 2 (Q8_0 64 x 64); then `change`."""
    program = _native.Program(VARIANT)
    program.buffer("T", 256)
    program.buffer("T", 128)
    program.buffer("B", 256)
    program.buffer("T", _native.a8_row_bytes(64))
    program.weight(np.ones(64, np.float32))
    program.weight(_native.PackedMatrix("F32", np.ones((64, 64), np.float32), 64, 64, threads=1))
    program.weight(_native.PackedMatrix("Q8_0", np.zeros((64, 68), np.uint8), 64, 64, threads=1))
    program.rope("fixed", {"inv_freq": np.ones(8, np.float32), "attention_factor": 1.0})
    change(program)
    program.finish()


NORM = {"x": 0, "out": 0, "out_a8": -1, "kind": "rms", "eps": 1e-5, "weight": 0, "bias": -1, "width": 64}
MATMUL = {
    "x": 0,
    "width": 64,
    "weights": [1],
    "out": 2,
    "out_col": 0,
    "biases": [-1],
    "clip": 0.0,
    "residual": -1,
    "multiplier": 1.0,
    "two_terms": False,
}
ROPE = {
    "x": 0,
    "q_col": 0,
    "k_col": 32,
    "v_col": 48,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "rot_dim": 16,
    "interleaved": False,
    "angles": 1,
    "layer": 0,
}
ATTENTION = {
    "x": 0,
    "q_col": 0,
    "out": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "layer": 0,
    "scale": 1.0,
    "window": 0,
    "softcap": 0.0,
}
GLU = {"x": 0, "width": 32, "out": 1, "out_a8": -1, "activation": "silu"}
HEAD_NORM = {"x": 0, "col": 0, "width": 64, "parts": 2, "eps": 1e-5, "weight": 0}
MATMUL_OUT = {key: MATMUL[key] for key in MATMUL.keys() - {"out", "residual"}} | {"output": 0}
COPY_OUT = {"x": 0, "col": 0, "width": 64, "output": 0, "out_col": 0, "rows": "T"}


def test_the_base_of_the_refusals_is_fine() -> None:
    def change(program: _native.Program) -> None:
        program.emit("norm", **NORM)
        program.emit("matmul", **{**MATMUL, "x": 0, "out": program.buffer("T", 256)})
        program.emit("rope_kv", **ROPE)
        program.emit("attention", **ATTENTION)
        program.emit("copy_out", **COPY_OUT)

    build(change)


@pytest.mark.parametrize(
    ("op", "fields", "message"),
    [
        ("jump", {}, "unknown instruction 'jump'"),
        ("norm", {**NORM, "colour": 1}, "norm: unknown field 'colour'"),
        ("norm", {k: v for k, v in NORM.items() if k != "eps"}, "norm: field 'eps' is missing"),
        ("norm", {**NORM, "eps": -1.0}, "'eps' must be 0 or more"),
        ("norm", {**NORM, "eps": float("nan")}, "'eps' must be finite"),
        ("norm", {**NORM, "eps": 1e300}, "must be a finite float32"),
        ("norm", {**NORM, "eps": "small"}, "'eps' must be a number"),
        ("norm", {**NORM, "width": 64.0}, "'width' must be an integer"),
        ("norm", {**NORM, "width": 0}, "'width' must be 1 to"),
        ("norm", {**NORM, "width": 1 << 70}, "does not fit into 64 bits"),
        ("norm", {**NORM, "width": True}, "'width' must be an integer"),
        ("norm", {**NORM, "width": None}, "field 'width' must be a number"),
        ("norm", {**NORM, "kind": "batch"}, "'kind' must be one of 'rms', 'layer', got 'batch'"),
        ("norm", {**NORM, "out": -1}, "one of 'out' and 'out_a8'"),
        ("norm", {**NORM, "bias": 0}, "kind 'rms' has no 'bias'"),
        ("norm", {**NORM, "x": 9}, r"instruction 0 of 'main' \(norm\): 'x' is buffer 9, the program has 4"),
        ("norm", {**NORM, "x": 1}, "'x' needs columns 0 to 64 of buffer 1, which has 32"),
        ("norm", {**NORM, "out": 2}, "'x' has rows T, 'out' has B"),
        ("norm", {**NORM, "out_a8": 0}, "'x' and 'out_a8' are both buffer 0"),
        ("norm", {**NORM, "weight": 1}, "'weight' must be a vector, weight 1 is a matrix"),
        ("norm", {**NORM, "weight": 7}, "'weight' is weight 7, the program has 3"),
        ("norm", {**NORM, "x": 1, "width": 32, "out": 1}, "'weight' must have 32 values, weight 0 has 64"),
        ("head_norm", {**HEAD_NORM, "eps": -1.0}, "'eps' must be 0 or more"),
        ("head_norm", {**HEAD_NORM, "parts": 0}, "'parts' must be 1 to"),
        ("head_norm", {**HEAD_NORM, "col": 1}, "'x' needs columns 1 to 129 of buffer 0, which has"),
        ("head_norm", {**HEAD_NORM, "width": 1 << 30, "parts": 1 << 30}, "parts of 1073741824 columns are too many"),
        ("head_norm", {**HEAD_NORM, "parts": 1, "weight": 1}, "'weight' must be a vector, weight 1 is a matrix"),
        ("head_norm", {**HEAD_NORM, "width": 32, "parts": 1}, "'weight' must have 32 values, weight 0 has 64"),
        ("quantize", {"x": 0, "col": 1, "width": 64, "out_a8": 3, "two_terms": False}, "needs columns 1 to 65"),
        ("quantize", {"x": 0, "col": 0, "width": 33, "out_a8": 3, "two_terms": False}, "blocks of 32 values"),
        ("quantize", {"x": 0, "col": 0, "width": 64, "out_a8": 1, "two_terms": True}, "needs rows of"),
        ("matmul", MATMUL, "'x' has rows T, 'out' has B"),
        ("matmul", {**MATMUL, "out": 0}, "'x' and 'out' are both buffer 0"),
        ("matmul", {**MATMUL, "out": 1}, "'out' needs columns 0 to 64 of buffer 1"),
        ("matmul", {**MATMUL, "weights": []}, "'weights' must name 1 to 16 matrices"),
        ("matmul", {**MATMUL, "weights": [1, "b"]}, "'weights' must be a list of integers"),
        ("matmul", {**MATMUL, "weights": [0]}, "'weights' must be a matrix, weight 0 is a vector"),
        ("matmul", {**MATMUL, "weights": [1, 2], "biases": [-1, -1]}, "take float32 and int8 activations"),
        ("matmul", {**MATMUL, "weights": [1, 1]}, "'biases' must have one entry per matrix, 2, got 1"),
        ("matmul", {**MATMUL, "width": 32}, "has 64 columns, 'width' is 32"),
        ("matmul", {**MATMUL, "clip": -1.0}, "'clip' must be 0"),
        ("matmul", {**MATMUL, "biases": [1]}, "'biases' must be a vector"),
        ("matmul", {**MATMUL, "weights": [2], "x": 1}, "needs rows of"),
        ("glu", {**GLU, "activation": "relu"}, "'activation' must be one of 'silu'"),
        ("softcap", {"x": 0, "col": 1, "width": 64, "cap": 1.0}, "'x' needs columns 1 to 65"),
        ("softcap", {"x": 0, "col": 0, "width": 64, "cap": 0.0}, "'cap' must be more than 0"),
        ("glu", {**GLU, "width": 64}, "'x' needs columns 0 to 128"),
        ("glu", {**GLU, "out": -1}, "one of 'out' and 'out_a8'"),
        ("rope_angles", {"rope": 1, "out": 1}, "'rope' is 1, the program has 1"),
        ("rope_angles", {"rope": 0, "out": 2}, "'out' must have rows T"),
        ("rope_kv", {**ROPE, "k_col": 16}, "overlap the keys or values at column 16"),
        ("rope_kv", {**ROPE, "v_col": 49}, "'x' needs columns 49 to 65"),
        ("rope_kv", {**ROPE, "rot_dim": 18}, "'rot_dim' must be even and no more than head_dim 16"),
        ("rope_kv", {**ROPE, "rot_dim": 15}, "'rot_dim' must be even"),
        ("rope_kv", {**ROPE, "interleaved": 1}, "'interleaved' must be True or False"),
        ("rope_kv", {**ROPE, "angles": 0}, "'x' and 'angles' are both buffer 0"),
        ("attention", {**ATTENTION, "num_heads": 3, "num_kv_heads": 2}, "no multiple of 2"),
        ("attention", {**ATTENTION, "softcap": -1.0}, "'softcap' must be 0"),
        ("attention", {**ATTENTION, "window": -1}, "'window' must be 0 to"),
        ("attention", {**ATTENTION, "head_dim": 2000}, "'head_dim' must be 1 to 1024"),
        ("attention", {**ATTENTION, "scale": float("inf")}, "'scale' must be finite"),
        ("gather_rows", {"x": 0, "out": 1, "width": 8, "mode": "last"}, "'out' must have rows B"),
        ("gather_rows", {"x": 2, "out": 2, "width": 8, "mode": "last"}, "'x' and 'out' are both buffer 2"),
        ("gather_rows", {"x": 0, "out": 2, "width": 8, "mode": "first"}, "'mode' must be one of"),
        ("scale", {"x": 0, "out": 0, "width": 8, "multiplier": 0, "divide": True}, "must not be 0 to divide"),
        ("clamp", {"x": 0, "col": 0, "width": 8, "limit": -2.0}, "'limit' must be 0 or more"),
        ("copy", {"x": 0, "col": 0, "out": 2, "out_col": 0, "width": 8}, "'x' has rows T, 'out' has B"),
        ("matmul_out", {**MATMUL_OUT, "output": 1}, "nothing writes output 0"),
        ("matmul_out", {**MATMUL_OUT, "output": 64}, "'output' must be 0 to 63"),
        ("matmul_out", {**MATMUL_OUT, "out": 0}, "unknown field 'out'"),
        ("copy_out", {**COPY_OUT, "rows": "B"}, "'rows' has rows B, 'x' has T"),
        ("copy_out", {**COPY_OUT, "output": 1}, "nothing writes output 0"),
        ("copy_out", {**COPY_OUT, "output": 64}, "'output' must be 0 to 63"),
        ("call", {"sub": 0, "weight_base": 0, "layer": 0}, "'sub' must be"),
    ],
)
def test_wrong_instructions_are_refused(op: str, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(lambda program: program.emit(op, **fields))


def test_a_call_is_checked_with_its_own_weights() -> None:
    def change(program: _native.Program) -> None:
        program.begin_sub("layer")
        program.emit("norm", **NORM)
        sub = program.end_sub()
        program.emit("call", sub=sub, weight_base=0, layer=0)
        program.emit("call", sub=sub, weight_base=1, layer=1)

    with pytest.raises(ValueError, match=r"instruction 0 of 'layer' \(norm\): 'weight' must be a vector, weight 1 is"):
        build(change)


def test_order_of_building() -> None:
    program = _native.Program(VARIANT)
    with pytest.raises(RuntimeError, match="no subprogram is open"):
        program.end_sub()
    with pytest.raises(RuntimeError, match="not finished"):
        program.execute({}, [])
    program.begin_sub("a")
    with pytest.raises(RuntimeError, match="'a' is still open"):
        program.begin_sub("b")
    with pytest.raises(ValueError, match="cannot call another"):
        program.emit("call", sub=0, weight_base=0, layer=0)
    with pytest.raises(ValueError, match="'a' is still open"):
        program.finish()
    program.end_sub()
    program.finish()
    for late in (
        lambda: program.buffer("T", 4),
        lambda: program.weight(np.ones(1, np.float32)),
        lambda: program.emit("offsets_out", output=0, mode="all"),
        lambda: program.begin_sub("c"),
        program.finish,
    ):
        with pytest.raises(RuntimeError, match="the program is finished"):
            late()


def test_declarations_are_checked() -> None:
    program = _native.Program(VARIANT)
    for rows, row_bytes, message in [
        ("X", 4, "must be 'T', 'B' or 'R'"),
        ("T", 0, "row_bytes"),
        ("T", 6, "multiple of 4"),
        ("T", 1 << 50, "row_bytes"),
    ]:
        with pytest.raises(ValueError, match=message):
            program.buffer(rows, row_bytes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must not be empty"):
        program.weight(np.ones(0, np.float32))
    with pytest.raises(TypeError, match="weight must be float32, got another type"):
        program.weight(np.ones(3))
    with pytest.raises(ValueError, match="weight must have 1 dimensions"):
        program.weight(np.ones((3, 3), np.float32))
    with pytest.raises(TypeError, match="weight must be an array, got int"):
        program.weight(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown variant 'mmx'"):
        _native.Program("mmx")
