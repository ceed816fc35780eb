"""The rules of the kernels in NumPy, bit for bit, from their descriptions and not from their code.

Subnormal operands and results count as zero, as in every thread of a program.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from support import exact, ggml_blocks

Floats = NDArray[np.float32]
Array = NDArray[Any]
_SMALLEST = np.finfo(np.float32).tiny


def flush(values: Array) -> Floats:
    """Subnormals as zeros of their sign."""
    values = np.asarray(values, np.float32)
    return np.where(np.abs(values) < _SMALLEST, np.copysign(np.float32(0), values), values)


def fma(a: Array, b: Array, c: Array) -> Floats:
    """a * b + c in one rounding."""
    return flush(exact.fma(*(flush(v) for v in np.broadcast_arrays(a, b, c))))


# ---- int8 activations (csrc/quant/a8.h) ------------------------------------------------------------------------------


def codes_of(x: Floats) -> tuple[Array, Floats]:
    """Codes int64 `[rows, blocks, 32]` and scales `[rows, blocks]` of rows."""
    blocks = flush(x).reshape(len(x), -1, 32)
    largest = np.abs(blocks).max(axis=2)  # NaN where one of them is
    d = (largest / np.float32(127)).astype(np.float32)
    d[d < _SMALLEST] = 0
    is_good = np.isfinite(largest) & (d > 0)
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=is_good)
    scaled = np.where(is_good[..., None], blocks, 0) * inverse[..., None]
    return np.rint(scaled).astype(np.int64), np.where(np.isfinite(largest), d, np.float32(np.nan))


def rest_of(x: Floats) -> Floats:
    """What the codes leave of rows: the second of two terms."""
    codes, d = codes_of(x)
    return fma(-d[..., None], codes.astype(np.float32), x.reshape(codes.shape)).reshape(x.shape)


def a8_blocks(x: Floats, *, two_terms: bool = False) -> NDArray[np.uint8]:
    """The bytes of the blocks of each row, those that pad to 64 columns included; the sums of a block in both forms."""
    terms = [x, rest_of(x)] if two_terms else [x]
    return np.stack([_a8_blocks(term) for term in terms], axis=1).reshape(len(terms) * len(x), -1)


def _a8_blocks(x: Floats) -> NDArray[np.uint8]:
    codes, d = codes_of(x)
    sums = codes.sum(axis=2)
    quarters = -8 * codes.reshape(*d.shape, 2, 4, 2, 2).sum(axis=(3, 5))  # by half, and by k % 4 below 2 or not
    parts = (
        codes.astype(np.int8),
        d.astype("<f4")[..., None],
        flush(d * sums.astype(np.float32)).astype("<f4")[..., None],
        quarters.sum(axis=3).astype("<i4"),
        quarters.reshape(*d.shape, 4).astype("<i2"),
    )
    blocks = np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=2)
    padded = np.zeros((len(x), (blocks.shape[1] + 1) // 2 * 2, blocks.shape[2]), np.uint8)
    padded[:, : blocks.shape[1]] = blocks
    return padded.reshape(len(x), -1)


# ---- products (csrc/quant/*.h, core/kernel_table.h) ------------------------------------------------------------------


def float_product(weights: Floats, x: Floats) -> Floats:
    """One chain per output, ascending."""
    return _chain(weights, x, range(x.shape[1]))


def bf16_product(weights: Floats, x: Floats) -> Floats:
    """The same of operands rounded to bfloat16, the odd one of each pair first; an odd width is padded with a zero."""
    pad = ((0, 0), (0, x.shape[1] % 2))
    rounded = np.pad(x.astype(ml_dtypes.bfloat16).astype(np.float32), pad)
    return _chain(np.pad(weights, pad), rounded, [k ^ 1 for k in range(rounded.shape[1])])


def bf16_tile_product(weights: Floats, x: Floats) -> Floats:
    """As tiles add (csrc/simd/tiles.h): 32 k at a time, the even and the odd ones from 0, then both to the sum."""
    pad = ((0, 0), (0, -x.shape[1] % 32))
    rounded, weights = np.pad(x.astype(ml_dtypes.bfloat16).astype(np.float32), pad), np.pad(weights, pad)
    acc = np.zeros((len(x), len(weights)), np.float32)
    for k in range(0, rounded.shape[1], 32):
        even, odd = (_chain(weights, rounded, range(k + first, k + 32, 2)) for first in (0, 1))
        acc = flush(acc + flush(even + odd))
    return acc


def _chain(weights: Floats, x: Floats, order: Iterable[int]) -> Floats:
    acc = np.zeros((len(x), len(weights)), np.float32)
    for k in order:
        acc = fma(weights[None, :, k], x[:, None, k], acc)
    return acc


def integer_product(format: str, data: Array, x: Floats) -> Floats:
    """Exact sums within blocks of 32, scaled and added block by block, ascending."""
    terms, offset = ggml_blocks.integer_parts(format, data, x.shape[1])
    codes, d = codes_of(x)
    sums = flush(d * codes.sum(axis=2).astype(np.float32))
    whole = [np.einsum("rbk,obk->rob", codes, weights.reshape(len(data), -1, 32)) for weights, _ in terms]
    assert all(np.abs(sums).max() < 2**24 for sums in whole)  # exact in float32
    acc = np.zeros((len(x), len(data)), np.float32)
    for block in range(d.shape[1]):
        for exact_sums, (_, scale) in zip(whole, terms, strict=True):
            value = flush(exact_sums[:, :, block].astype(np.float32) * flush(scale[None, :, block]))
            acc = fma(value, d[:, None, block], acc)
        if offset is not None:
            acc = fma(offset[None, :, block], sums[:, None, block], acc)
    return acc


def product(format: str, data: Array, x: Floats, *, is_full: bool, two_terms: bool, on_tiles: bool = False) -> Floats:
    """Stored rows times rows of x; `on_tiles`: as the amx variant multiplies bfloat16."""
    if format == "BF16" and not is_full:
        weights = ggml_blocks.dequantized(format, data, x.shape[1])
        return bf16_tile_product(weights, x) if on_tiles else bf16_product(weights, x)
    if format not in ggml_blocks.INTEGER_FORMATS or is_full:
        return float_product(ggml_blocks.dequantized(format, data, x.shape[1]), x)
    first = integer_product(format, data, x)
    return flush(first + integer_product(format, data, rest_of(x))) if two_terms else first


def epilogue(y: Floats, *, bias: Array | None, clip: float, multiplier: float, residual: Array | None) -> Floats:
    """What becomes of a product before it is stored."""
    if bias is not None:
        y = flush(y + bias)
    if clip > 0:
        y = clamp(y, clip)
    if residual is not None:
        return fma(np.float32(multiplier), y, residual)
    return flush(np.float32(multiplier) * y)


# ---- row by row ------------------------------------------------------------------------------------------------------


def clamp(x: Array, limit: float) -> Floats:
    """Within ±limit; NaN stays NaN."""
    return np.minimum(np.float32(limit), np.maximum(np.float32(-limit), flush(x)))


def lane_sum(values: Array, *, squares: bool) -> Floats:
    """Sums of rows `[n]`: sixteen lanes, ascending, then l and l+8, +4, +2, +1."""
    lanes = np.zeros((len(values), 16), np.float32)
    for begin in range(0, values.shape[1], 16):
        part = np.zeros_like(lanes)
        part[:, : values.shape[1] - begin] = values[:, begin : begin + 16]
        lanes = fma(part, part, lanes) if squares else flush(lanes + part)
    for step in (8, 4, 2, 1):
        lanes = flush(lanes[:, :step] + lanes[:, step : 2 * step])
    return lanes[:, 0]


def norm(x: Floats, *, kind: str, eps: float, weight: Array | None, bias: Array | None) -> Floats:
    """RMS or layer normalization."""
    width, x = np.float32(x.shape[1]), flush(x)
    if kind == "layer":
        x = flush(x - (lane_sum(x, squares=False) / width)[:, None])
    inverse = np.float32(1) / np.sqrt(lane_sum(x, squares=True) / width + np.float32(eps))
    y = flush(x * inverse[:, None])
    y = y if weight is None else flush(y * weight)
    return y if bias is None else flush(y + bias)


def rotate(heads: Floats, angles: Floats, *, interleaved: bool) -> Floats:
    """Heads `[rows, heads, D]` turned by angles `[rows, rot_dim]`: cosines, then sines."""
    half = angles.shape[1] // 2
    first = np.s_[..., 0 : 2 * half : 2] if interleaved else np.s_[..., :half]
    second = np.s_[..., 1 : 2 * half : 2] if interleaved else np.s_[..., half : 2 * half]
    cosine, sine = angles[:, None, :half], angles[:, None, half:]
    a, b, out = heads[first], heads[second], heads.copy()
    out[first] = flush(flush(a * cosine) - flush(b * sine))
    out[second] = flush(flush(a * sine) + flush(b * cosine))
    return out


KV_TYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int8": np.int8,
}
