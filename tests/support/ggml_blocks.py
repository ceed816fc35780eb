"""Random blocks of every ggml type, and their parts: integer weights, scales, offsets.

The parts come from the `gguf` package by dequantizing the same blocks with other scales, so that they say nothing about
how Puna reads a block.
"""

from __future__ import annotations

from typing import NamedTuple

import gguf
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

# Where the half-precision fields of a block are: its scale, and its offset or min where there is one.
HALVES: dict[str, tuple[int, ...]] = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ1_S": (0,),
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}

INTEGER_FORMATS = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"),
)
FLOAT_FORMATS = ("F32", "F16", "BF16")


def block_shape(format: str) -> tuple[int, int]:
    """Elements and bytes of a block, as the `gguf` package has them."""
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[format]]


def row_bytes(format: str, cols: int) -> int:
    elements, size = block_shape(format)
    assert cols % elements == 0
    return cols // elements * size


def random_blocks(random: np.random.Generator, format: str, rows: int, cols: int, scale: float = 0.01) -> Bytes:
    """Stored rows, uint8 [rows, row_bytes], with random codes and finite scales of about `scale`."""
    kind = gguf.GGMLQuantizationType[format]
    if format in FLOAT_FORMATS:
        values = (random.standard_normal((rows, cols)) * scale).astype(np.float32)
        return np.ascontiguousarray(gguf.quantize(values, kind)).view(np.uint8).reshape(rows, -1)
    elements, size = block_shape(format)
    blocks = random.integers(0, 256, (rows, cols // elements, size), dtype=np.uint8)
    for offset in HALVES.get(format, ()):
        set_half(blocks, offset, random.uniform(-scale, scale, blocks.shape[:2]))
    if format == "Q8_K":
        scales = random.uniform(-scale, scale, blocks.shape[:2]).astype("<f4")
        blocks[..., :4] = scales[..., None].view(np.uint8)
    elif format == "MXFP4":
        blocks[..., 0] = random.integers(118, 124, blocks.shape[:2])
    elif format == "IQ1_M":
        blocks[..., 55] &= 0x3F  # the upper bits of the scale: a small exponent, no sign
    return blocks.reshape(rows, -1)


def set_half(blocks: Bytes, offset: int, values: NDArray[np.floating] | float) -> None:
    """Store `values` in the half-precision field at `offset` of blocks [rows, count, bytes]."""
    halves = np.broadcast_to(np.asarray(values, dtype="<f2"), blocks.shape[:2])
    blocks[..., offset : offset + 2] = np.ascontiguousarray(halves)[..., None].view(np.uint8)


def set_scales(blocks: Bytes, format: str, value: float) -> None:
    """Make `value`, a power of two, every scale of blocks [rows, count, bytes], and every offset that there is."""
    for offset in HALVES.get(format, ()):
        set_half(blocks, offset, value)
    if format == "MXFP4":
        blocks[..., 0] = 127 + round(np.log2(value))


def half(blocks: Bytes, offset: int) -> Floats:
    """The half-precision field at `offset` of blocks [rows, count, bytes], as float32 [rows, count]."""
    return np.ascontiguousarray(blocks[..., offset : offset + 2]).view("<f2")[..., 0].astype(np.float32)


def dequantized(format: str, data: Bytes, cols: int) -> Floats:
    """What the `gguf` package makes of stored rows: float32 [rows, cols]."""
    if format == "Q8_K":  # the package reads the type but does not dequantize it
        blocks = data.reshape(data.shape[0], -1, 292)
        scales = np.ascontiguousarray(blocks[..., :4]).view("<f4")
        return (scales * blocks[..., 4:260].view(np.int8).astype(np.float32)).reshape(-1, cols)
    return gguf.dequantize(np.ascontiguousarray(data), gguf.GGMLQuantizationType[format]).reshape(-1, cols)


class IntegerParts(NamedTuple):
    """Rows of an integer format taken apart: value = sum over terms of scale * weight, plus offset, per 32 columns."""

    terms: list[tuple[NDArray[np.int64], Floats]]
    """In the order of addition: int64 [rows, cols], sub-block scales or mins included; float32 [rows, cols / 32]."""

    offset: Floats | None
    """float32 [rows, cols / 32], or None."""


def integer_parts(format: str, data: Bytes, cols: int) -> IntegerParts:
    """Take rows of an integer format apart."""
    elements, size = block_shape(format)
    blocks = data.reshape(data.shape[0], -1, size)

    def with_halves(*values: float) -> Floats:
        changed = blocks.copy()
        for offset, value in zip(HALVES[format], values, strict=True):
            set_half(changed, offset, value)
        return dequantized(format, changed.reshape(data.shape), cols)

    if format == "MXFP4":  # doubled values have integer codes
        changed = blocks.copy()
        changed[..., 0] = 128
        codes = dequantized(format, changed.reshape(data.shape), cols).astype(np.int64)
        return IntegerParts([(codes, np.ldexp(np.float32(1), blocks[..., 0].astype(np.int32) - 128))], None)
    repeat = elements // 32
    scale = np.repeat(half(blocks, HALVES[format][0]), repeat, axis=1)
    if len(HALVES[format]) == 1:
        return IntegerParts([(with_halves(1).astype(np.int64), scale)], None)
    weights, unit = with_halves(1, 0).astype(np.int64), with_halves(0, 1)
    offset = np.repeat(half(blocks, HALVES[format][1]), repeat, axis=1)
    if format == "Q2_K":  # a min per 16
        return IntegerParts([(weights, scale), (unit.astype(np.int64), offset)], None)
    return IntegerParts([(weights, scale)], offset * unit[:, ::32])
