"""Writes the recorded kernel cases: `python tests/kernels/write_cases.py [DIRECTORY]`.

Inputs come from fixed seeds, expected bits from the scalar variant, which the other tests compare with float64 and with
the exact rules. puna_replay then asks every variant, sanitizers and emulated machines for the same bits.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from puna import _native
from support import ggml_blocks
from support.case_recorder import CaseRecorder
from support.native_steps import Cache, Request, random_rows

Array = NDArray[Any]
VARIANT = "scalar"
CASES = Path(__file__).parent / "cases"


def start(x: Array) -> tuple[CaseRecorder, int]:
    """A program whose buffer x holds these rows."""
    case = CaseRecorder(VARIANT)
    rows, width = x.shape
    buffer = case.buffer(width)
    case.emit("embed", weight=case.matrix("F32", x, rows, width), out=buffer, scale=1.0)
    return case, buffer


def finish(path: Path, case: CaseRecorder, rows: int, results: list[tuple[int, int]], **inputs: Array) -> None:
    """Copy these buffers (and their widths) out, with rows T, and write the case."""
    for output, (buffer, width) in enumerate(results):
        case.emit("copy_out", x=buffer, col=0, width=width, output=output, out_col=0, rows="T")
    outputs = [np.zeros((rows, width), np.float32) for _, width in results]
    given = {"input_row_offsets": np.array([0, rows], np.uint32), **inputs}
    case.save(path, {"tokens": np.arange(rows, dtype=np.int64), **given}, outputs)


def matmul(case: CaseRecorder, x: int, width: int, weights: list[int], out: int, **fields: Any) -> None:
    defaults = {"out_col": 0, "biases": [-1] * len(weights), "clip": 0.0, "residual": -1, "multiplier": 1.0}
    case.emit(
        "matmul", **{**defaults, "x": x, "width": width, "weights": weights, "out": out, "two_terms": False, **fields}
    )


def write_products(directory: Path, format: str, precision: str) -> None:
    """Products with 11, 3 and 1 rows, and rows looked up, of a matrix in this format."""
    random = np.random.default_rng(100)
    rows, cols = 21, {1: 83, 32: 96, 64: 192}.get(ggml_blocks.block_shape(format)[0], 256)
    data = ggml_blocks.random_blocks(random, format, rows, cols)
    case, x = start(random_rows(11, cols, 1))
    weight = case.matrix(format, data, rows, cols, precision=precision)
    is_coded = precision == "auto" and _native.format_info(format)[2] == "a8"
    outputs = []
    for kind, count in (("T", 11), ("R", 3), ("B", 1)):
        source = x
        if kind != "T":
            source = case.buffer(cols, kind)
            mode = "variable" if kind == "R" else "last"
            case.emit("gather_rows", x=x, out=source, width=cols, mode=mode)
        for two_terms in (False, True) if is_coded else (False,):
            operand = source
            if is_coded:
                operand = case.codes(cols, kind, 1 + two_terms)
                case.emit("quantize", x=source, col=0, width=cols, out_a8=operand, two_terms=two_terms)
            out = case.buffer(rows, kind)
            matmul(case, operand, cols, [weight], out, two_terms=two_terms)
            index = len(outputs)
            case.emit("copy_out", x=out, col=0, width=rows, output=index, out_col=0, rows=kind)
            outputs.append(np.zeros((count, rows), np.float32))
    looked_up = case.buffer(cols)
    case.emit("embed", weight=weight, out=looked_up, scale=0.5)
    case.emit("copy_out", x=looked_up, col=0, width=cols, output=len(outputs), out_col=0, rows="T")
    inputs = {
        "tokens": np.arange(11, dtype=np.int64),
        "input_row_offsets": np.array([0, 11], np.uint32),
        "return_n_logits": np.array([3], np.int64),
    }
    name = f"product_{format.lower()}{'_float32' if precision == 'float32' else ''}.case"
    case.save(directory / name, inputs, [*outputs, np.zeros((11, cols), np.float32)])


def write_joined_product(directory: Path) -> None:
    """Several matrices, biases, a limit, a factor and a residual sum in one instruction."""
    x = random_rows(7, 64, 2)
    case, buffer = start(x)
    matrices = [case.matrix("F16", random_rows(n, 64, n).astype(np.float16), n, 64) for n in (5, 40, 16)]
    bias, total = case.vector(random_rows(1, 40, 3)[0]), case.buffer(61)
    case.emit("copy", x=buffer, col=3, out=total, out_col=0, width=61)
    options = {"biases": [-1, bias, -1], "clip": 4.0, "residual": total, "multiplier": 0.22}
    matmul(case, buffer, 64, matrices, total, **options)
    finish(directory / "product_joined.case", case, 7, [(total, 61)])


def write_rows(directory: Path) -> None:
    """Norms, SwiGLU, sums, factors, limits, copies."""
    x = random_rows(6, 192, 4)
    case, buffer = start(x)
    weight, bias = case.vector(random_rows(1, 100, 5)[0]), case.vector(random_rows(1, 100, 6)[0])
    results = []
    for kind, first, second in (("rms", weight, -1), ("rms", -1, -1), ("layer", weight, bias), ("layer", -1, -1)):
        out = case.buffer(100)
        case.emit("norm", x=buffer, out=out, out_a8=-1, kind=kind, eps=1e-5, weight=first, bias=second, width=100)
        results.append((out, 100))
    gated, total, divided = case.buffer(96), case.buffer(90), case.buffer(90)
    case.emit("swiglu", x=buffer, width=96, out=gated, out_a8=-1)
    case.emit("add", a=buffer, b=gated, out=total, width=90, multiplier=0.3)
    case.emit("scale", x=total, out=divided, width=90, multiplier=0.7, divide=True)
    case.emit("clamp", x=divided, col=7, width=50, limit=0.5)
    case.emit("copy", x=total, col=1, out=divided, out_col=60, width=20)
    case.emit("scale", x=total, out=total, width=90, multiplier=1.7, divide=False)
    finish(directory / "rows.case", case, 6, [*results, (gated, 96), (total, 90), (divided, 90)])


def write_fused_codes(directory: Path) -> None:
    """Norm and SwiGLU that round their results to int8 themselves."""
    x = random_rows(5, 128, 7)
    case, buffer = start(x)
    data = ggml_blocks.random_blocks(np.random.default_rng(8), "Q4_0", 20, 64)
    weight, results = case.matrix("Q4_0", data, 20, 64), []
    for op in ("norm", "swiglu"):
        codes, out = case.codes(64), case.buffer(20)
        extra: dict[str, object] = {"kind": "rms", "eps": 1e-6, "weight": -1, "bias": -1} if op == "norm" else {}
        case.emit(op, x=buffer, width=64, out=-1, out_a8=codes, **extra)
        matmul(case, codes, 64, [weight], out)
        results.append((out, 20))
    finish(directory / "rows_fused.case", case, 5, results)


def write_angles(directory: Path) -> None:
    """The three kinds of frequencies, near and far, short and long."""
    requests = [Request(0, 3), Request(4095, 2), Request(131070, 2)]
    frequencies = (1 / 10000.0 ** (np.arange(0, 32, 2) / 32)).astype(np.float32)
    kinds: list[tuple[str, dict[str, object]]] = [
        ("fixed", {"inv_freq": frequencies, "attention_factor": 1.0}),
        (
            "longrope",
            {
                "short_inv_freq": frequencies,
                "long_inv_freq": frequencies / np.float32(5),
                "original_max_position": 4096,
                "attention_factor": 1.19,
            },
        ),
        (
            "dynamic",
            {
                "theta": 10000.0,
                "factor": 4.0,
                "original_max_position": 2048,
                "rot_dim": 32,
                "attention_factor": 1.0,
            },
        ),
    ]
    case, _ = start(np.zeros((7, 1), np.float32))
    results = []
    for kind, parameters in kinds:
        out = case.buffer(32)
        case.emit("rope_angles", rope=case.rope(kind, parameters), out=out)
        results.append((out, 32))
    offsets = np.cumsum([0] + [r.new for r in requests]).astype(np.uint32)
    lengths = np.array([r.cached for r in requests], np.uint32)
    finish(directory / "rope_angles.case", case, 7, results, input_row_offsets=offsets, cache_lengths=lengths)


def zeroed(cache: Cache) -> dict[str, Array]:
    """The inputs of a cache whose unwritten places are zero: NaN has other bits on other machines."""
    inputs = cache.inputs()
    inputs["kv_blocks"] = np.where(np.isnan(cache.blocks), np.zeros_like(cache.blocks), cache.blocks)
    return inputs


def write_attention(
    directory: Path,
    name: str,
    requests: list[Request],
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: str,
    rot_dim: int = 0,
    window: int = 0,
    interleaved: bool = False,
    page_size: int = 16,
    layers: int = 1,
) -> None:
    """Rotation, store and attention of some requests in one step, in the last layer."""
    cache = Cache(
        requests, layers=layers, page_size=page_size, num_kv_heads=kv_heads, head_dim=head_dim, dtype=dtype, seed=9
    )
    rows, width = sum(r.new for r in requests), (heads + 2 * kv_heads) * head_dim
    rot_dim = rot_dim or head_dim
    case, x = start(random_rows(rows, width, 10))
    frequencies = (1 / 10000.0 ** (np.arange(0, rot_dim, 2) / rot_dim)).astype(np.float32)
    angles, out = case.buffer(rot_dim), case.buffer(heads * head_dim)
    case.emit("rope_angles", rope=case.rope("fixed", {"inv_freq": frequencies, "attention_factor": 1.0}), out=angles)
    sizes = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": head_dim, "layer": layers - 1}
    columns = {"q_col": 0, "k_col": heads * head_dim, "v_col": (heads + kv_heads) * head_dim}
    case.emit("rope_kv", x=x, rot_dim=rot_dim, interleaved=interleaved, angles=angles, **columns, **sizes)
    case.emit("attention", x=x, q_col=0, out=out, scale=head_dim**-0.5, window=window, **sizes)
    finish(directory / f"attention_{name}.case", case, rows, [(out, heads * head_dim)], **zeroed(cache))


def write_called(directory: Path) -> None:
    """A subprogram called twice, and every kind of output."""
    case, x = start(random_rows(9, 48, 11))
    normed, last, some = case.buffer(48), case.buffer(48, "B"), case.buffer(48, "R")
    bases = []
    for layer in range(2):
        bases.append(case.vector(random_rows(1, 48, 20 + layer)[0]))
        case.matrix("BF16", ggml_blocks.random_blocks(np.random.default_rng(layer), "BF16", 48, 48), 48, 48)
    case.begin_sub("layer")
    case.emit("norm", x=x, out=normed, out_a8=-1, kind="rms", eps=1e-5, weight=0, bias=-1, width=48)
    matmul(case, normed, 48, [1], x, residual=x, multiplier=0.5)
    sub = case.end_sub()
    for layer, base in enumerate(bases):
        case.emit("call", sub=sub, weight_base=base, layer=layer)
    case.emit("gather_rows", x=x, out=last, width=48, mode="last")
    case.emit("gather_rows", x=x, out=some, width=48, mode="variable")
    case.emit("copy_out", x=last, col=0, width=48, output=0, out_col=0, rows="B")
    case.emit("copy_out", x=some, col=8, width=40, output=1, out_col=0, rows="R")
    case.emit("offsets_out", output=2, mode="variable")
    case.emit("offsets_out", output=3, mode="all")
    inputs = {
        "tokens": np.arange(9, dtype=np.int64)[::-1].copy(),
        "input_row_offsets": np.array([0, 2, 6, 9], np.uint32),
        "return_n_logits": np.array([2], np.int64),
    }
    outputs = [
        np.zeros((3, 48), np.float32),
        np.zeros((6, 40), np.float32),
        np.zeros(4, np.int64),
        np.zeros(4, np.uint32),
    ]
    case.save(directory / "called.case", inputs, outputs)


def write_all(directory: Path) -> None:
    """Write every case."""
    directory.mkdir(parents=True, exist_ok=True)
    for format in _native.FORMATS:
        write_products(directory, format, "auto")
    for format in ("Q4_0", "Q4_K", "Q6_K"):
        write_products(directory, format, "float32")
    write_joined_product(directory)
    write_rows(directory)
    write_fused_codes(directory)
    write_angles(directory)
    mixed = [Request(30, 3), Request(0, 9), Request(70, 1)]
    long = [Request(1030, 1), Request(513, 2)]
    write_attention(directory, "f32", mixed, heads=4, kv_heads=2, head_dim=16, dtype="float32", layers=2)
    write_attention(directory, "f16", mixed, heads=6, kv_heads=2, head_dim=24, dtype="float16", page_size=5)
    write_attention(directory, "bf16", mixed, heads=3, kv_heads=1, head_dim=64, dtype="bfloat16", interleaved=True)
    write_attention(directory, "partial_rope", mixed, heads=2, kv_heads=2, head_dim=20, dtype="float32", rot_dim=8)
    write_attention(directory, "window", mixed, heads=2, kv_heads=1, head_dim=16, dtype="float16", window=33)
    write_attention(directory, "long", long, heads=2, kv_heads=1, head_dim=16, dtype="float16", page_size=128)
    write_called(directory)


if __name__ == "__main__":
    write_all(Path(sys.argv[1]) if len(sys.argv) > 1 else CASES)
