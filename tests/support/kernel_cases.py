"""The recorded calls of single kernels: seeded operands, and results by the rules of `kernel_truth`.

Where a rule is a long sequence of steps (the exponential function, attention) the bits are those of the scalar variant,
and test_cases.py compares their values with float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna import _native
from support import ggml_blocks, kernel_truth
from support.call_programs import run_call
from support.case_recorder import Call
from support.native_steps import Cache, Request, codes_of_heads, random_rows

Array = NDArray[Any]
ROWS = 17  # of a product: two tiles of eight and a rest
SPECIAL = np.array(
    [0.0, -0.0, 1e-45, -1e-40, 1.1754944e-38, -1.1754944e-38, 3e38, -3e38, np.inf, -np.inf, np.nan, 1.0, -0.5, 7e-7],
    np.float32,
)


def by_scalar(op: str, **fields: Any) -> Call:
    """A call whose result is the scalar variant's."""
    return Call(op, {**fields, **run_call(Call(op, fields), "scalar")})


# ---- formats ---------------------------------------------------------------------------------------------------------


def dequantize_calls() -> list[Call]:
    """Any bytes: scales are infinite, subnormal and NaN too."""
    calls = []
    for format in _native.FORMATS:
        elements, size = ggml_blocks.block_shape(format)
        blocks = {1: 97, 32: 6, 64: 3}.get(elements, 2)
        data = np.random.default_rng(40).integers(0, 256, (1, blocks * size), np.uint8)
        with np.errstate(all="ignore"):
            out = ggml_blocks.dequantized(format, data, blocks * elements)
        calls.append(Call("dequantize", {"name": format, "format": format, "data": data, "out": out}))
    return calls


def quantize_calls() -> list[Call]:
    """Widths with and without padding, ties, blocks that are all zero, tiny, huge or not finite."""
    ties = np.resize(np.arange(-127, 127.5, 0.5, dtype=np.float32), (2, 96))
    ties[:, ::32] = 127
    edges = random_rows(6, 64, 41)
    edges[0] = 0
    edges[1, :32] = 1e-36  # its scale is subnormal, its rest is not
    edges[1, 32:] = 1e-42
    edges[2] *= np.float32(1e37)
    edges[3, 5], edges[4, 40], edges[5, 63] = np.nan, np.inf, -np.inf
    operands = {"ties": ties, "edges": edges}
    operands |= {f"width_{width}": random_rows(3, width, width) for width in (32, 64, 96, 416)}
    calls = []
    for name, x in operands.items():
        for two_terms in (False, True):
            with np.errstate(all="ignore"):
                out = kernel_truth.a8_blocks(x, two_terms=two_terms)
            sizes = {"rows": x.shape[0], "cols": x.shape[1], "two_terms": two_terms}
            calls.append(Call("quantize", {"name": name + "_two" * two_terms, **sizes, "x": x, "out": out}))
    return calls


# ---- products --------------------------------------------------------------------------------------------------------


def matmul_call(name: str, format: str, data: Array, x: Array, **options: Any) -> Call:
    """A product, and what becomes of it."""
    is_full, two_terms = options.get("full", False), options.get("two_terms", False)
    ends = {"bias": options.get("bias"), "residual": options.get("residual")}
    ends |= {"clip": options.get("clip", 0.0), "multiplier": options.get("multiplier", 1.0)}
    with np.errstate(all="ignore"):
        out, on_tiles = (
            kernel_truth.epilogue(
                kernel_truth.product(format, data, x, is_full=is_full, two_terms=two_terms, on_tiles=on_tiles), **ends
            )
            for on_tiles in (False, True)
        )
    flags = {"full": is_full, "two_terms": two_terms, "repeat": options.get("repeat", False)}
    sizes = {"format": format, "rows": len(data), "cols": x.shape[1]}
    given = {key: value for key, value in ends.items() if value is not None}
    if format == "BF16" and not is_full:
        given["out_on_tiles"] = on_tiles
    return Call("matmul", {"name": name, **sizes, **flags, **given, "weights": data, "x": x, "out": out})


def modes(format: str) -> list[tuple[str, dict[str, bool]]]:
    """In how many ways a format is multiplied."""
    if format not in ggml_blocks.INTEGER_FORMATS:
        exact = {"BF16": [("BF16_float32", {"full": True})]}
        return [(format, {}), *exact.get(format, [])]
    return [(format, {}), (f"{format}_two_terms", {"two_terms": True}), (f"{format}_float32", {"full": True})]


def format_calls() -> list[Call]:
    """Every format: an odd number of rows, few columns (half a packed unit where that exists) and more."""
    calls = []
    for format in _native.FORMATS:
        elements = ggml_blocks.block_shape(format)[0]
        few, other = {1: (131, 2), 32: (96, 32), 64: (192, 64)}.get(elements, (256, 512))
        for rows, cols in ((21, few), (3, other)):
            data = ggml_blocks.random_blocks(np.random.default_rng(42), format, rows, cols)
            for name, mode in modes(format):
                x = random_rows(ROWS, cols, 43)
                calls.append(matmul_call(f"{name}_{rows}x{cols}", format, data, x, repeat=rows == 21, **mode))
    for format, cols in (("Q4_0", 64), ("Q8_0", 64), ("Q6_K", 256)):  # a pair of panels, and one more
        data = ggml_blocks.random_blocks(np.random.default_rng(44), format, 35, cols)
        calls.append(matmul_call(f"{format}_35x{cols}", format, data, random_rows(ROWS, cols, 45)))
    for cols in (96, 549):  # whole steps of 32, and a rest; more rows than two tiles of them
        data = ggml_blocks.random_blocks(np.random.default_rng(44), "BF16", 85, cols)
        calls.append(matmul_call(f"BF16_85x{cols}", "BF16", data, random_rows(50, cols, 45), repeat=cols == 96))
    for format in ggml_blocks.INTEGER_FORMATS:  # more rows than a tile of sixteen and what is left over without one
        cols = {32: 96, 64: 192}.get(ggml_blocks.block_shape(format)[0], 512)
        data = ggml_blocks.random_blocks(np.random.default_rng(44), format, 19, cols)
        calls.append(matmul_call(f"{format}_50_rows", format, data, random_rows(50, cols, 45)))
    for format in ggml_blocks.FLOAT_FORMATS:  # several panels at once, where there are one or two rows
        data = ggml_blocks.random_blocks(np.random.default_rng(44), format, 85, 40)
        calls.extend(matmul_call(f"{n}_85x40", format, data, random_rows(9, 40, 45), **m) for n, m in modes(format))
        data = ggml_blocks.random_blocks(np.random.default_rng(44), format, 16, 1)
        calls.extend(matmul_call(f"{n}_16x1", format, data, random_rows(3, 1, 45), **m) for n, m in modes(format))
    return calls


def extreme_calls() -> list[Call]:
    """Codes at their limits on both sides, where narrow sums would saturate; operands that are not finite."""
    calls = []
    for format in ggml_blocks.INTEGER_FORMATS:
        elements, size = ggml_blocks.block_shape(format)
        cols = {32: 96}.get(elements, 256)
        patterns = np.array([0x00, 0xFF, 0x80, 0x7F, 0xF0, 0x0F], np.uint8)
        blocks = np.repeat(patterns, cols // elements * size).reshape(len(patterns), -1, size)
        ggml_blocks.set_scales(blocks, format, 0.25)
        signs = [[1], [-1], [1, -1], [1, 1, -1, -1], [-1, -1, 1, 1]]
        x = np.stack([np.resize(np.array(pattern, np.float32), cols) for pattern in signs])
        for name, mode in modes(format):
            calls.append(matmul_call(f"{name}_extreme", format, blocks.reshape(len(patterns), -1), x, **mode))
    for format in ("Q4_1", "Q6_K", "F16"):
        cols = 256
        data = ggml_blocks.random_blocks(np.random.default_rng(46), format, 18, cols)
        x = random_rows(5, cols, 47)
        x[1, 100], x[3, 0] = np.nan, np.inf
        calls.append(matmul_call(f"{format}_not_finite", format, data, x, clip=2.0, multiplier=0.5))
    return calls


def subnormal_calls() -> list[Call]:
    """Weights, operands and sums below the smallest normal number: zeros, but for what float16 holds exactly."""
    calls = []
    values = np.resize(np.array([1e-39, -3e-38, 6e-8, -6e-5, 1e-41, 2.0], np.float32), (17, 12))
    x = np.resize(np.array([1e-39, 1.0, 1e-5, 1e-30, 1.5, 1e-38, 0.25], np.float32), (5, 12))
    for format in ggml_blocks.FLOAT_FORMATS:
        data = values.astype(kernel_truth.KV_TYPES[{"F32": "float32", "F16": "float16"}.get(format, "bfloat16")])
        data = data.view(np.uint8).reshape(17, -1)
        calls.extend(matmul_call(f"{name}_subnormal", format, data, x, **mode) for name, mode in modes(format))
    return calls


def epilogue_calls() -> list[Call]:
    """Biases, limits, factors, residual sums, alone and together."""
    calls = []
    for format, cols in (("F16", 24), ("Q4_0", 32), ("Q4_K", 256), ("IQ3_S", 256)):
        data = ggml_blocks.random_blocks(np.random.default_rng(48), format, 21, cols, 0.5)
        x, residual = random_rows(ROWS, cols, 49), random_rows(ROWS, 21, 50)
        bias = random_rows(1, 21, 51)[0]
        combinations: dict[str, dict[str, Any]] = {
            "bias": {"bias": bias},
            "clip": {"clip": 1.5},
            "multiplier": {"multiplier": 0.22},
            "residual": {"residual": residual},
            "all": {"bias": bias, "clip": 1.5, "multiplier": 0.22, "residual": residual},
        }
        for name, ends in combinations.items():
            calls.append(matmul_call(f"{format}_{name}", format, data, x, **ends))
    return calls


# ---- row by row ------------------------------------------------------------------------------------------------------


def norm_calls() -> list[Call]:
    """Both kinds, with and without weight and bias; widths around 16, and some that are rounded to codes."""
    calls = []
    for width in (1, 15, 16, 17, 64, 96, 100):
        operands = {"": random_rows(3, width, 60)}
        if width == 64:
            large = random_rows(2, width, 61) * np.float32(1e18)
            large[1] *= np.float32(1e5)  # its squares overflow
            operands["_edges"] = np.concatenate([large, np.zeros((1, width), np.float32)])
            operands["_edges"][2, 3] = np.nan
            operands["_zero"] = np.zeros((2, width), np.float32)
        weight, bias = random_rows(2, width, 62)
        for kind in ("rms", "layer"):
            for suffix, x in operands.items():
                for vectors in ({}, {"weight": weight}, {"bias": bias}, {"weight": weight, "bias": bias}):
                    if kind == "rms" and "bias" in vectors:
                        continue
                    options = {"weight": None, "bias": None, **vectors}
                    with np.errstate(all="ignore"):
                        out = kernel_truth.norm(x, kind=kind, eps=1e-5, **options)
                    name = "_".join([kind + suffix, str(width), *vectors])
                    sizes = {"name": name, "kind": kind, "eps": 1e-5, "width": width}
                    calls.append(Call("norm", {**sizes, **vectors, "x": x, "out": out}))
    return calls


def glu_calls() -> list[Call]:
    """Widths around 16, and gates from all over the line: large negative ones show every bit of the exponential."""
    calls = []
    gates = np.concatenate([SPECIAL, np.linspace(-90, 90, 49, dtype=np.float32), np.float32([-87.3365, 88.7228, 1e30])])
    special = np.concatenate([gates, np.full(gates.size, 3, np.float32)])[None]
    for activation in ("silu", "gelu_tanh"):
        kind = {"activation": activation}
        for width in (1, 16, 23, 96):
            x = random_rows(3, 2 * width, 63)
            calls.append(by_scalar("glu", name=f"{activation}_{width}", width=width, x=x, **kind))
        calls.append(by_scalar("glu", name=f"{activation}_special", width=gates.size, x=special, **kind))
    return calls


def softcap_calls() -> list[Call]:
    """Both branches of tanh, their border, and special values."""
    near = np.nextafter(np.float32(0.625), np.float32([0, 1]))
    x = np.concatenate([SPECIAL, -near, near, np.linspace(-20, 20, 81, dtype=np.float32)])[None]
    return [by_scalar("softcap", name=f"cap_{cap:g}", width=x.size, x=x, cap=cap) for cap in (1.0, 30.0)]


def elementwise_calls() -> list[Call]:
    """Sums, factors, limits of ordinary and special values."""
    calls = []
    special = np.resize(SPECIAL, (3, 37))
    others = np.resize(np.roll(SPECIAL, 3), (3, 37))
    for name, a, b in (
        ("special", special, others),
        *((str(width), random_rows(4, width, 64), random_rows(4, width, 65)) for width in (1, 16, 23, 96)),
    ):
        width = a.shape[1]
        with np.errstate(all="ignore"):
            total = kernel_truth.fma(np.float32(0.22), b, a)
            scaled = kernel_truth.flush(kernel_truth.flush(a) * np.float32(0.3))
            divided = kernel_truth.flush(kernel_truth.flush(a) / np.float32(0.3))
        calls.append(Call("add", {"name": name, "width": width, "multiplier": 0.22, "a": a, "b": b, "out": total}))
        for divide, out in ((False, scaled), (True, divided)):
            given = {"name": name + "_divided" * divide, "width": width, "factor": 0.3, "divide": divide}
            calls.append(Call("scale", {**given, "x": a, "out": out}))
        x = a
        limited = kernel_truth.clamp(x, 0.5)
        calls.append(Call("clamp", {"name": name, "width": width, "limit": 0.5, "x": x, "out": limited}))
    return calls


# ---- attention -------------------------------------------------------------------------------------------------------


def step_fields(cache: Cache) -> dict[str, Any]:
    """What the requests and their cache are to a kernel, in the last layer."""
    return {
        "kv_type": cache.dtype,
        "layers": cache.layers,
        "layer": cache.layers - 1,
        "page_size": cache.page_size,
        "num_kv_heads": cache.num_kv_heads,
        "head_dim": cache.head_dim,
        "offsets": cache.offsets.tolist(),
        "lengths": [r.cached for r in cache.requests],
        "table": cache.table.reshape(-1).tolist(),
        "kv": cache.blocks.reshape(-1).view(np.uint8).copy(),
        **({} if cache.scales is None else {"kv_scales": np.nan_to_num(cache.scales).reshape(-1)}),
    }


def rope_call(name: str, dtype: str, dim: int, rot_dim: int, interleaved: bool) -> Call:
    """Rotation of queries in place, keys and values into the second layer of a cache."""
    requests = [Request(2, 2), Request(0, 1), Request(0, 0)]
    cache = Cache(requests, layers=2, page_size=3, num_kv_heads=2, head_dim=dim, dtype=dtype, shuffle=5)
    columns = {"q_col": 1, "k_col": 2 + 4 * dim, "v_col": 2 + 6 * dim}
    rows = int(cache.offsets[-1])
    x, angles = random_rows(rows, 2 + 8 * dim, 70), np.clip(random_rows(rows, rot_dim, 71), -1, 1)
    x[0, columns["v_col"] : columns["v_col"] + 4] = [1e-7, 3e-8, 65519, 65520]  # limits of float16
    q, k, v = (
        x[:, begin : begin + heads * dim].reshape(rows, heads, dim)
        for begin, heads in zip(columns.values(), (4, 2, 2), strict=True)
    )
    out, blocks = x.copy(), cache.blocks.copy()
    scales = None if cache.scales is None else np.nan_to_num(cache.scales)
    out[:, 1 : 1 + 4 * dim] = kernel_truth.rotate(q, angles, interleaved=interleaved).reshape(rows, -1)
    stored = np.stack([kernel_truth.rotate(k, angles, interleaved=interleaved), v], axis=1)
    if scales is not None:
        stored, stored_scales = codes_of_heads(stored)
    else:
        with np.errstate(over="ignore"):
            stored = stored.astype(blocks.dtype)
    row = 0
    for b, request in enumerate(requests):
        for position in range(request.cached, request.total):
            blocks[cache.table[b, position // 3], :, 1, position % 3] = stored[row]
            if scales is not None:
                scales[cache.table[b, position // 3], :, 1, position % 3] = stored_scales[row]
            row += 1
    given = {"name": f"{name}_{dtype}", "num_heads": 4, "rot_dim": rot_dim, "interleaved": interleaved, **columns}
    results = {"out": out, "kv_out": blocks.reshape(-1).view(np.uint8)}
    if scales is not None:
        results["kv_scales_out"] = scales.reshape(-1)
    return Call("rope_kv", {**given, **step_fields(cache), "x": x, "angles": angles, **results})


def rope_calls() -> list[Call]:
    """Both pairings, part of a head, three types of cache, pages out of order."""
    calls = [rope_call("halves", "float32", 40, 40, False), rope_call("pairs", "float16", 40, 40, True)]
    for dtype in kernel_truth.KV_TYPES:
        calls += [rope_call("part", dtype, 23, 20, False), rope_call("part_pairs", dtype, 7, 4, True)]
    return calls


def attention_calls() -> list[Call]:
    """Prompts and single rows, groups of heads, windows, types, pages of all sizes, more than one split."""
    few, mixed = [Request(30, 3), Request(0, 5)], [Request(30, 3), Request(0, 5), Request(65, 1)]
    long = [Request(1025, 1), Request(511, 3)]
    shapes: list[tuple[str, list[Request], int, int, int, str, int, int]] = [
        ("plain", few, 4, 2, 16, "float32", 8, 0),
        ("all_heads", few, 2, 2, 56, "float16", 5, 0),
        ("one_head", few, 5, 1, 48, "bfloat16", 8, 0),
        ("odd", mixed, 3, 1, 7, "float32", 1, 0),
        ("many_heads", [Request(33, 2)], 34, 1, 16, "float16", 16, 0),
        ("window", mixed, 4, 2, 16, "float16", 8, 33),
        ("window_of_one", few, 2, 1, 5, "float32", 16, 1),
        # Few queries read heads of whole vectors straight from the cache, more of them read a copy.
        ("straight", [Request(40, 1)], 4, 1, 112, "float16", 16, 0),
        ("copied", [Request(40, 1)], 5, 1, 112, "float16", 16, 0),
        ("straight_bf16", [Request(40, 1), Request(0, 1)], 6, 2, 16, "bfloat16", 16, 37),
        ("straight_f32", [Request(40, 1), Request(2, 2)], 4, 2, 16, "float32", 16, 0),
        ("straight_int8", [Request(130, 1)], 4, 1, 48, "int8", 16, 0),
        ("copied_int8", mixed, 5, 1, 36, "int8", 5, 37),
        ("long_int8", long, 2, 2, 16, "int8", 64, 520),
        ("long", long, 4, 1, 4, "float16", 64, 0),
        ("softcap", mixed, 4, 2, 16, "float16", 8, 0),
        ("softcap_long", long, 2, 1, 4, "float16", 64, 520),
        ("softcap_int8", mixed, 4, 1, 48, "int8", 16, 37),
        ("long_window", long, 2, 1, 4, "float16", 64, 520),
    ]
    calls = []
    for name, requests, heads, kv_heads, dim, dtype, page_size, window in shapes:
        filled = [Request(r.total, 0) for r in requests]
        cache = Cache(filled, page_size=page_size, num_kv_heads=kv_heads, head_dim=dim, dtype=dtype, shuffle=7)
        offsets = np.cumsum([0] + [r.new for r in requests])
        step = {**step_fields(cache), "offsets": offsets.tolist(), "lengths": [r.cached for r in requests]}
        q = random_rows(int(offsets[-1]), heads * dim, 72)
        options = {"scale": 0.31, "window": window, "softcap": 0.6 if name.startswith("softcap") else 0.0}
        calls.append(by_scalar("attention", name=name, num_heads=heads, **options, **step, q=q))
    calls.append(exponential_call())
    return calls


def exponential_call() -> Call:
    """One row, one position before it whose weight is exp(-t) for another t in each head: all bits of small weights."""
    t = np.concatenate(
        [
            np.linspace(0, 90, 31),
            [1e-45, 1e-38, 1e-7, 0.34657, 0.34658, 87.33653, 87.33654, 87.33655, 103, 1e30, np.nan],
        ]
    ).astype(np.float32)
    cache = Cache([Request(2, 0)], page_size=2, head_dim=16)
    page = cache.table[0, 0]
    cache.blocks[page] = 0
    cache.blocks[page, :, 0, 0, 0, 0] = [-1, 1]
    q = np.zeros((t.size, 16), np.float32)
    q[:, 0] = t
    step = {**step_fields(cache), "offsets": [0, 1], "lengths": [1]}
    options = {"scale": 1.0, "window": 0, "softcap": 0.0}
    return by_scalar("attention", name="exponential", num_heads=t.size, **options, **step, q=q.reshape(1, -1))


FILES = {
    "formats": lambda: [*dequantize_calls(), *quantize_calls()],
    "products": format_calls,
    "product_edges": lambda: [*extreme_calls(), *subnormal_calls(), *epilogue_calls()],
    "rows": lambda: [*norm_calls(), *glu_calls(), *softcap_calls(), *elementwise_calls()],
    "attention": lambda: [*rope_calls(), *attention_calls()],
}
"""What is in each file."""
