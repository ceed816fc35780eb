"""Runs recorded calls of kernels through the Python module: as programs of one instruction, or as functions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna import _native
from support.case_recorder import Call
from support.kernel_truth import KV_TYPES
from support.native_steps import Rig

Array = NDArray[Any]


def run_call(call: Call, variant: str) -> dict[str, Array]:
    """What the native module gives, by the names of the recorded results; flat float32, or bytes."""
    runners = {"dequantize": _dequantize, "matmul": _matmul, "rope_kv": _rope_kv, "attention": _attention}
    return runners.get(call.op, _by_rows)(call.fields, variant, call.op)


def has_codes_only(call: Call) -> bool:
    """Whether the result is in a form that the Python module does not show."""
    return call.op == "quantize"


def _table(rig: Rig, values: Array) -> int:
    """Another buffer that holds rows."""
    rows, width = values.shape
    buffer = rig.buffer(width)
    matrix = _native.PackedMatrix("F32", np.ascontiguousarray(values), rows, width, threads=1)
    rig.emit("embed", weight=rig.program.weight(matrix), out=buffer, scale=1.0)
    return buffer


def _dequantize(fields: dict[str, Any], variant: str, op: str) -> dict[str, Array]:
    out = _native.dequantize(fields["format"], fields["data"].reshape(1, -1), fields["out"].size)
    return {"out": out.reshape(-1)}


def _matmul(fields: dict[str, Any], variant: str, op: str) -> dict[str, Array]:
    rows, cols = fields["rows"], fields["cols"]
    rig = Rig(fields["x"].reshape(-1, cols), variant)
    weights = fields["weights"].reshape(rows, -1)
    matrix = _native.PackedMatrix(
        fields["format"], weights, rows, cols, "float32" if fields["full"] else "auto", threads=1
    )
    operand, out = rig.x, rig.buffer(rows)
    if matrix.partner == "a8":
        operand = rig.program.buffer("T", (1 + fields["two_terms"]) * _native.a8_row_bytes(cols))
        rig.emit("quantize", x=rig.x, col=0, width=cols, out_a8=operand, two_terms=fields["two_terms"])
    residual = _table(rig, fields["residual"].reshape(-1, rows)) if "residual" in fields else -1
    rig.emit(
        "matmul",
        x=operand,
        width=cols,
        weights=[rig.program.weight(matrix)],
        out=out,
        out_col=0,
        biases=[rig.vector(fields.get("bias"))],
        residual=residual,
        **{name: fields[name] for name in ("clip", "multiplier", "two_terms")},
    )
    rig.output(out, rows)
    return {"out": rig.run(threads=2)[0].reshape(-1)}


def _by_rows(fields: dict[str, Any], variant: str, op: str) -> dict[str, Array]:
    width = fields["width"]
    operand = fields["a"] if op == "add" else fields["x"]
    rig = Rig(operand.reshape(-1, 2 * width if op == "glu" else width), variant)
    out = rig.x if op in ("clamp", "softcap") else rig.buffer(width)
    if op == "norm":
        vectors = {name: rig.vector(fields.get(name)) for name in ("weight", "bias")}
        rig.emit(op, x=rig.x, out=out, out_a8=-1, kind=fields["kind"], eps=fields["eps"], width=width, **vectors)
    elif op == "glu":
        rig.emit(op, x=rig.x, width=width, out=out, out_a8=-1, activation=fields["activation"])
    elif op == "add":
        second = _table(rig, fields["b"].reshape(-1, width))
        rig.emit(op, a=rig.x, b=second, out=out, width=width, multiplier=fields["multiplier"])
    elif op == "scale":
        rig.emit(op, x=rig.x, out=out, width=width, multiplier=fields["factor"], divide=fields["divide"])
    elif op == "softcap":
        rig.emit(op, x=rig.x, col=0, width=width, cap=fields["cap"])
    else:
        assert op == "clamp"
        rig.emit(op, x=rig.x, col=0, width=width, limit=fields["limit"])
    rig.output(out, width)
    return {"out": rig.run()[0].reshape(-1)}


def _step(fields: dict[str, Any]) -> dict[str, Array]:
    lengths = np.array(fields["lengths"], np.uint32)
    sizes = (2, fields["layers"], fields["page_size"], fields["num_kv_heads"], fields["head_dim"])
    return {
        "input_row_offsets": np.array(fields["offsets"], np.uint32),
        "cache_lengths": lengths,
        "lookup_table": np.array(fields["table"], np.uint32).reshape(len(lengths), -1),
        "kv_blocks": fields["kv"].copy().view(KV_TYPES[fields["kv_type"]]).reshape(-1, *sizes),
        **({"kv_scales": fields["kv_scales"].copy().reshape(-1, *sizes[:-1], 1)} if "kv_scales" in fields else {}),
    }


_SIZES = ("num_heads", "num_kv_heads", "head_dim", "layer")


def _rope_kv(fields: dict[str, Any], variant: str, op: str) -> dict[str, Array]:
    inputs = _step(fields)
    rows = fields["offsets"][-1]
    x = fields["x"].reshape(rows, -1)
    rig = Rig(x, variant)
    angles = _table(rig, fields["angles"].reshape(rows, -1))
    names = (*_SIZES, "q_col", "k_col", "v_col", "rot_dim", "interleaved")
    rig.emit(op, x=rig.x, angles=angles, **{name: fields[name] for name in names})
    rig.output(rig.x, x.shape[1])
    out = rig.run(inputs, threads=2)[0].reshape(-1)
    scales = {"kv_scales_out": inputs["kv_scales"].reshape(-1)} if "kv_scales" in inputs else {}
    return {"out": out, "kv_out": inputs["kv_blocks"].reshape(-1).view(np.uint8), **scales}


def _attention(fields: dict[str, Any], variant: str, op: str) -> dict[str, Array]:
    q = fields["q"].reshape(fields["offsets"][-1], -1)
    rig = Rig(q, variant)
    out = rig.buffer(q.shape[1])
    rig.emit(op, x=rig.x, q_col=0, out=out, **{name: fields[name] for name in (*_SIZES, "scale", "window", "softcap")})
    rig.output(out, q.shape[1])
    return {"out": rig.run(_step(fields), threads=2)[0].reshape(-1)}
