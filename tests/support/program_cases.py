"""The recorded programs: seeded weights and inputs, the bits that one thread of a variant gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from puna import _native
from puna.pipelines.lora.routing import AdapterRouting
from support import ggml_blocks
from support.case_recorder import CaseRecorder
from support.native_steps import Cache, Request, random_rows

Array = NDArray[Any]
MIXED = [Request(30, 3), Request(0, 9), Request(45, 1)]
LONG = [Request(1025, 1), Request(511, 3)]  # several splits


def start(variant: str, x: Array) -> tuple[CaseRecorder, int]:
    """A program whose buffer x holds these rows."""
    case = CaseRecorder(variant)
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
    """Emit a product; everything optional is absent."""
    defaults = {"out_col": 0, "biases": [-1] * len(weights), "clip": 0.0, "residual": -1, "multiplier": 1.0}
    case.emit(
        "matmul", **{**defaults, "x": x, "width": width, "weights": weights, "out": out, "two_terms": False, **fields}
    )


def blocks(format: str, rows: int, cols: int, seed: int) -> Array:
    """Random stored rows."""
    return ggml_blocks.random_blocks(np.random.default_rng(seed), format, rows, cols)


def inv_freq(rot_dim: int) -> Array:
    """The usual frequencies (by Python's power: NumPy's differs between processors)."""
    return np.array([10000.0 ** (-j / rot_dim) for j in range(0, rot_dim, 2)], np.float32)


# ---- products --------------------------------------------------------------------------------------------------------


def write_products(variant: str, path: Path, *, formats: tuple[str, ...], precision: str = "auto") -> None:
    """Products of several matrices with 7, 3 and 1 rows, and rows looked up in the first of them."""
    cols = 256
    case, x = start(variant, random_rows(7, cols, 1))
    sizes = (18, 9, 3)[: len(formats)]
    weights = [
        case.matrix(format, blocks(format, rows, cols, 100 + rows), rows, cols, precision=precision)
        for format, rows in zip(formats, sizes, strict=True)
    ]
    is_coded = precision == "auto" and _native.format_info(formats[0])[2] == "a8"
    total, outputs = sum(sizes), []
    for kind, count in (("T", 7), ("R", 3), ("B", 1)):
        source = x
        if kind != "T":
            source = case.buffer(cols, kind)
            case.emit("gather_rows", x=x, out=source, width=cols, mode="variable" if kind == "R" else "last")
        for two_terms in (False, True) if is_coded else (False,):
            operand = source
            if is_coded:
                operand = case.codes(cols, kind, 1 + two_terms)
                case.emit("quantize", x=source, col=0, width=cols, out_a8=operand, two_terms=two_terms)
            out = case.buffer(total, kind)
            matmul(case, operand, cols, weights, out, two_terms=two_terms)
            index = len(outputs)
            case.emit("copy_out", x=out, col=0, width=total, output=index, out_col=0, rows=kind)
            outputs.append(np.zeros((count, total), np.float32))
    looked_up = case.buffer(cols)
    case.emit("embed", weight=weights[0], out=looked_up, scale=0.5)
    case.emit("copy_out", x=looked_up, col=0, width=cols, output=len(outputs), out_col=0, rows="T")
    inputs = {
        "tokens": np.arange(7, dtype=np.int64),
        "input_row_offsets": np.array([0, 7], np.uint32),
        "return_n_logits": np.array([3], np.int64),
    }
    case.save(path, inputs, [*outputs, np.zeros((7, cols), np.float32)])


def write_joined_product(variant: str, path: Path) -> None:
    """Several matrices, biases, a limit, a factor and a residual sum in one instruction; one straight to an output."""
    x = random_rows(7, 64, 2)
    case, buffer = start(variant, x)
    matrices = [case.matrix("F16", random_rows(n, 64, n).astype(np.float16), n, 64) for n in (5, 40, 16)]
    bias, total = case.vector(random_rows(1, 40, 3)[0]), case.buffer(61)
    case.emit("copy", x=buffer, col=3, out=total, out_col=0, width=61)
    options = {"biases": [-1, bias, -1], "clip": 4.0, "residual": total, "multiplier": 0.22}
    matmul(case, buffer, 64, matrices, total, **options)
    direct = {"biases": [bias], "clip": 4.0, "multiplier": 0.22, "two_terms": False}
    case.emit("matmul_out", x=buffer, width=64, weights=matrices[1:2], output=1, out_col=3, **direct)
    case.emit("copy_out", x=total, col=0, width=61, output=0, out_col=0, rows="T")
    case.emit("copy_out", x=total, col=0, width=3, output=1, out_col=0, rows="T")
    inputs = {"tokens": np.arange(7, dtype=np.int64), "input_row_offsets": np.array([0, 7], np.uint32)}
    case.save(path, inputs, [np.zeros((7, 61), np.float32), np.zeros((7, 43), np.float32)])


# ---- row by row ------------------------------------------------------------------------------------------------------


def write_rows(variant: str, path: Path) -> None:
    """Norms, GLU, sums, factors, limits, copies; some of them in place."""
    case, buffer = start(variant, random_rows(6, 192, 4))
    weight, bias = case.vector(random_rows(1, 100, 5)[0]), case.vector(random_rows(1, 100, 6)[0])
    results = []
    for kind, first, second in (("rms", weight, -1), ("layer", weight, bias)):
        out = case.buffer(100)
        case.emit("norm", x=buffer, out=out, out_a8=-1, kind=kind, eps=1e-5, weight=first, bias=second, width=100)
        results.append((out, 100))
    gated, total, divided = case.buffer(96), case.buffer(90), case.buffer(90)
    case.emit("glu", x=buffer, width=96, out=gated, out_a8=-1, activation="silu")
    case.emit("add", a=buffer, b=gated, out=total, width=90, multiplier=0.3)
    case.emit("scale", x=total, out=divided, width=90, multiplier=0.7, divide=True)
    case.emit("clamp", x=divided, col=7, width=50, limit=0.5)
    case.emit("softcap", x=divided, col=60, width=30, cap=1.5)
    case.emit("copy", x=total, col=1, out=divided, out_col=60, width=20)
    heads, head = case.buffer(60), case.vector(random_rows(1, 18, 7)[0])
    case.emit("copy", x=buffer, col=100, out=heads, out_col=0, width=60)
    case.emit("head_norm", x=heads, col=3, width=18, parts=3, eps=1e-6, weight=head)
    case.emit("scale", x=total, out=total, width=90, multiplier=1.7, divide=False)
    finish(path, case, 6, [*results, (heads, 60), (gated, 96), (total, 90), (divided, 90)])


def write_angles(variant: str, path: Path) -> None:
    """The three kinds of frequencies, near and far, short and long."""
    requests = [Request(0, 3), Request(4095, 2), Request(131070, 2)]
    frequencies = inv_freq(32)
    longrope = {"short_inv_freq": frequencies, "long_inv_freq": frequencies / np.float32(5)}
    dynamic = {"theta": 10000.0, "factor": 4.0, "original_max_position": 2048, "rot_dim": 32}
    kinds: dict[str, dict[str, object]] = {
        "fixed": {"inv_freq": frequencies, "attention_factor": 1.0},
        "longrope": {**longrope, "original_max_position": 4096, "attention_factor": 1.19},
        "dynamic": {**dynamic, "attention_factor": 1.0},
    }
    case, _ = start(variant, np.zeros((7, 1), np.float32))
    results = []
    for kind, parameters in kinds.items():
        out = case.buffer(32)
        case.emit("rope_angles", rope=case.rope(kind, parameters), out=out)
        results.append((out, 32))
    offsets = np.cumsum([0] + [r.new for r in requests]).astype(np.uint32)
    lengths = np.array([r.cached for r in requests], np.uint32)
    finish(path, case, 7, results, input_row_offsets=offsets, cache_lengths=lengths)


# ---- attention and whole layers --------------------------------------------------------------------------------------


def zeroed(cache: Cache) -> dict[str, Array]:
    """The inputs of a cache whose unwritten places are zero: outside float32 each NaN counts as itself."""
    inputs = cache.inputs()
    inputs["kv_blocks"] = np.where(np.isnan(cache.blocks), np.zeros_like(cache.blocks), cache.blocks)
    return inputs


def write_attention(
    variant: str, path: Path, *, requests: list[Request], layers: int, head_dim: int, dtype: str, page_size: int
) -> None:
    """Rotation, store and attention of some requests in one step, with two KV heads, in the last layer."""
    heads = 4
    cache = Cache(requests, layers=layers, page_size=page_size, num_kv_heads=2, head_dim=head_dim, dtype=dtype, seed=9)
    rows, width = sum(r.new for r in requests), (heads + 4) * head_dim
    case, x = start(variant, random_rows(rows, width, 10))
    angles, out = case.buffer(head_dim), case.buffer(heads * head_dim)
    rope = case.rope("fixed", {"inv_freq": inv_freq(head_dim), "attention_factor": 1.0})
    case.emit("rope_angles", rope=rope, out=angles)
    sizes = {"num_heads": heads, "num_kv_heads": 2, "head_dim": head_dim, "layer": layers - 1}
    columns = {"q_col": 0, "k_col": heads * head_dim, "v_col": (heads + 2) * head_dim}
    case.emit("rope_kv", x=x, rot_dim=head_dim, interleaved=False, angles=angles, **columns, **sizes)
    case.emit("attention", x=x, q_col=0, out=out, scale=head_dim**-0.5, window=0, softcap=0.0, **sizes)
    finish(path, case, rows, [(out, heads * head_dim)], **zeroed(cache))


def write_decoder(variant: str, path: Path) -> None:
    """A small decoder as the engine writes one: two calls of a layer, and logits of the last rows in two terms."""
    hidden, heads, kv_heads, dim, feed = 64, 4, 2, 16, 96
    cache = Cache(MIXED, layers=2, page_size=8, num_kv_heads=kv_heads, head_dim=dim, dtype="float16", shuffle=3)
    case = CaseRecorder(variant)
    x, qkv, mixed = case.buffer(hidden), case.buffer((heads + 2 * kv_heads) * dim), case.buffer(heads * dim)
    codes, gates, gated = case.codes(hidden), case.buffer(2 * feed), case.codes(feed)
    angles, last = case.buffer(dim), case.buffer(hidden, "B")
    last_codes, logits = case.codes(hidden, "B", 2), case.buffer(50, "B")
    table = case.matrix("Q8_0", blocks("Q8_0", 50, hidden, 1), 50, hidden)
    final = case.vector(random_rows(1, hidden, 2)[0])
    bases = []
    for layer in range(2):
        bases.append(case.vector(random_rows(1, hidden, 10 + layer)[0]))
        case.vector(random_rows(1, hidden, 12 + layer)[0])
        for i, (format, rows, cols) in enumerate(
            [
                ("Q4_0", 64, hidden),
                ("Q4_1", 64, hidden),
                ("F16", hidden, hidden),
                ("Q5_0", 192, hidden),
                ("Q4_1", 64, feed),
            ]
        ):
            case.matrix(format, blocks(format, rows, cols, 20 + i), rows, cols)
    rope = case.rope("fixed", {"inv_freq": inv_freq(dim), "attention_factor": 1.0})
    sizes = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": dim, "layer": 0}
    columns = {"q_col": 0, "k_col": heads * dim, "v_col": (heads + kv_heads) * dim}
    norm = {"x": x, "out": -1, "kind": "rms", "eps": 1e-5, "bias": -1, "width": hidden}
    case.begin_sub("layer")
    case.emit("norm", out_a8=codes, weight=0, **norm)
    matmul(case, codes, hidden, [2, 3], qkv)
    case.emit("rope_kv", x=qkv, rot_dim=dim, interleaved=True, angles=angles, **columns, **sizes)
    case.emit("attention", x=qkv, q_col=0, out=mixed, scale=0.25, window=40, softcap=2.0, **sizes)
    matmul(case, mixed, hidden, [4], x, residual=x)
    case.emit("norm", out_a8=codes, weight=1, **norm)
    matmul(case, codes, hidden, [5], gates)
    case.emit("glu", x=gates, width=feed, out=-1, out_a8=gated, activation="gelu_tanh")
    matmul(case, gated, feed, [6], x, residual=x)
    sub = case.end_sub()
    case.emit("embed", weight=table, out=x, scale=2.0)
    case.emit("rope_angles", rope=rope, out=angles)
    for layer, base in enumerate(bases):
        case.emit("call", sub=sub, weight_base=base, layer=layer)
    case.emit("gather_rows", x=x, out=last, width=hidden, mode="last")
    case.emit("norm", x=last, out=last, out_a8=-1, kind="rms", eps=1e-5, weight=final, bias=-1, width=hidden)
    case.emit("quantize", x=last, col=0, width=hidden, out_a8=last_codes, two_terms=True)
    matmul(case, last_codes, hidden, [table], logits, two_terms=True)
    case.emit("copy_out", x=logits, col=0, width=50, output=0, out_col=0, rows="B")
    inputs = {"tokens": np.arange(13, dtype=np.int64) * 7 % 50, **zeroed(cache)}
    case.save(path, inputs, [np.zeros((3, 50), np.float32)])


def write_adapters(variant: str, path: Path) -> None:
    """Updates of products side by side, of the logits of requests and of a look-up; some rows have no adapter."""
    x = random_rows(78, 40, 12)
    case = CaseRecorder(variant)
    adapters = [_native.Adapter() for _ in range(3)]
    case.slots(adapters)
    formats = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    sizes = {0: (150, 40), 1: (21, 40)}
    for slot, (adapter, ranks) in enumerate(zip(adapters, ([16, 3], [20], [1, 5]), strict=True)):
        for target, rank in enumerate(ranks):
            outputs, inputs = sizes[target]
            kinds = list(formats)[slot:] + list(formats)[:slot]
            a = random_rows(rank, inputs, 70 + slot).astype(formats[kinds[0]])
            b = random_rows(outputs, rank, 80 + target).astype(formats[kinds[1]])
            case.update(adapter, slot, 1, target, [(kinds[0], a), (kinds[1], b)], 0.3)
        table = random_rows(len(x), 7, 90 + slot).astype(np.float16)
        case.update(adapter, slot, -1, 0, [("F16", table), ("F32", random_rows(40, 7, 95))], 1.5)
    buffer, low, out = case.buffer(40), case.buffer(64), case.buffer(180)
    weight = case.matrix("F32", x, len(x), 40)
    case.emit("embed", weight=weight, out=buffer, scale=1.0)
    top = {"rank": 7, "layer": -1, "targets": [0], "columns": [0], "widths": [40]}
    case.emit("lora_embed", out=buffer, low=low, **top)
    case.begin_sub("layer")
    both = case.matrix("Q8_0", blocks("Q8_0", 180, 32, 13), 180, 32)
    codes = case.codes(32)
    case.emit("quantize", x=buffer, col=0, width=32, out_a8=codes, two_terms=False)
    matmul(case, codes, 32, [both], out)
    fields = {"rank": 20, "layer": 0, "targets": [0, 1], "columns": [3, 155], "widths": [150, 21]}
    case.emit("lora", x=buffer, width=40, out=out, low=low, **fields)
    sub = case.end_sub()
    case.emit("call", sub=sub, weight_base=0, layer=1)
    last, small, ends = case.buffer(40, "B"), case.buffer(32, "B"), case.buffer(150, "B")
    case.emit("gather_rows", x=buffer, out=last, width=40, mode="last")
    case.emit("copy", x=last, col=0, out=ends, out_col=0, width=40)
    for begin in (40, 80, 110):
        case.emit("copy", x=last, col=0, out=ends, out_col=begin, width=40)
    fields = {"rank": 20, "layer": 1, "targets": [0], "columns": [0], "widths": [150]}
    case.emit("lora", x=last, width=40, out=ends, low=small, **fields)
    results = [(buffer, "T", 40), (out, "T", 180), (ends, "B", 150)]
    for output, (source, rows, width) in enumerate(results):
        case.emit("copy_out", x=source, col=0, width=width, output=output, out_col=0, rows=rows)
    offsets = np.array([0, 3, 70, 71, 75, 78], np.uint32)
    routed = AdapterRouting.of([2, 1, 1, 0, -1], [7, 20, 20, 16, 0]).inputs(offsets, 3)
    inputs = {name: value.to_numpy() for name, value in routed.items()}
    inputs |= {"tokens": np.arange(78, dtype=np.int64)[::-1].copy(), "input_row_offsets": offsets}
    outputs = [np.zeros((5 if rows == "B" else 78, width), np.float32) for _, rows, width in results]
    case.save(path, inputs, outputs)


def write_outputs(variant: str, path: Path) -> None:
    """Every kind of output, some columns of one."""
    case, x = start(variant, random_rows(9, 48, 11))
    last, some = case.buffer(48, "B"), case.buffer(48, "R")
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
    floats = [np.zeros((3, 48), np.float32), np.zeros((6, 40), np.float32)]
    case.save(path, inputs, [*floats, np.zeros(4, np.int64), np.zeros(4, np.uint32)])


def _with(write: Callable[..., None], **options: Any) -> Callable[[str, Path], None]:
    return lambda variant, path: write(variant, path, **options)


PROGRAMS: dict[str, Callable[[str, Path], None]] = {
    "program_products_coded": _with(write_products, formats=("Q4_K", "Q6_K", "Q8_0")),
    "program_products_float": _with(write_products, formats=("F16", "IQ3_S", "F32")),
    "program_products_exact": _with(write_products, formats=("Q4_0", "Q5_K"), precision="float32"),
    "program_products_joined": write_joined_product,
    "program_rows": write_rows,
    "program_angles": write_angles,
    "program_attention": _with(write_attention, requests=MIXED, layers=2, head_dim=20, dtype="bfloat16", page_size=5),
    "program_attention_long": _with(
        write_attention, requests=LONG, layers=1, head_dim=4, dtype="float16", page_size=64
    ),
    "program_decoder": write_decoder,
    "program_outputs": write_outputs,
    "program_adapters": write_adapters,
}
"""What writes each file, for a variant."""
