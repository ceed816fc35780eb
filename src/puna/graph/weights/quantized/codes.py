"""How quantized checkpoints write small integers and narrow floats, and how GGUF's blocks hold them.

All arrays of codes here are `[rows, inputs]`: a row is an output of the product, whatever order a file stores.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

__all__ = [
    "AWQ_COLUMNS",
    "Bytes",
    "Float32Array",
    "awq_codes",
    "bytes_of",
    "e8m0_values",
    "float8_values",
    "fp4_values",
    "mxfp4_blocks",
    "nibbles_of",
    "q4_0_blocks",
    "q5_0_blocks",
    "q8_0_blocks",
    "unpack_words",
]

Array: TypeAlias = np.ndarray[Any, Any]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Float32Array: TypeAlias = npt.NDArray[np.float32]

AWQ_COLUMNS: Final = 8
"""Neighbouring outputs whose codes AWQ puts into one word."""

# The place of column c of a word in the sequence of its nibbles, lowest first: nibbles hold columns 0 2 4 6 1 3 5 7.
_AWQ_NIBBLES: Final = np.array([0, 4, 1, 5, 2, 6, 3, 7])
_FP4: Final = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_E8M0: Final = np.append(np.ldexp(np.float32(1), np.arange(255) - 127), np.float32(np.nan)).astype(np.float32)
_FLOAT8: Final = {
    dtype: np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
    for dtype in map(np.dtype, (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2))
}


def bytes_of(array: Array) -> Bytes:
    """The bytes of an array along its last axis: `[..., n]` of w-byte elements to uint8 `[..., n * w]`."""
    return np.ascontiguousarray(array).view(np.uint8)


def nibbles_of(packed: Bytes) -> Bytes:
    """The 4-bit codes of bytes, the low one first: `[..., n]` to `[..., 2 n]`."""
    codes = np.empty((*packed.shape, 2), np.uint8)
    np.bitwise_and(packed, 15, out=codes[..., 0])
    np.right_shift(packed, 4, out=codes[..., 1])
    return codes.reshape(*packed.shape[:-1], -1)


def unpack_words(words: Array, bits: int) -> Bytes:
    """The codes in 32-bit words, lowest bits first: int32 `[rows, n]` to `[rows, 32 n / bits]`; 4 or 8 bits."""
    packed = bytes_of(words)
    return packed if bits == 8 else nibbles_of(packed)


def awq_codes(words: Array) -> Bytes:
    """AWQ's codes: int32 `[inputs, outputs / 8]` to `[outputs, inputs]`."""
    nibbles = nibbles_of(bytes_of(words)).reshape(*words.shape, AWQ_COLUMNS)[..., _AWQ_NIBBLES]
    return np.ascontiguousarray(nibbles.reshape(words.shape[0], -1).T)


def fp4_values(packed: Bytes) -> Float32Array:
    """The E2M1 values of bytes that hold two each."""
    return _FP4[nibbles_of(packed)]


def float8_values(codes: Array) -> Float32Array:
    """The values of E4M3 or E5M2 numbers."""
    return _FLOAT8[codes.dtype][codes.view(np.uint8)]


def e8m0_values(exponents: Bytes) -> Float32Array:
    """`2 ** (e - 127)`; 255 is NaN."""
    values: Float32Array = _E8M0[exponents]
    return values


def q4_0_blocks(codes: Bytes, scales: npt.NDArray[np.float16]) -> Bytes:
    """Blocks of `scale * (code - 8)`.

    Args:
        codes: 0 to 15, `[rows, inputs]`, inputs a multiple of 32.
        scales: `[rows, inputs / 32]`.
    """
    return _with_nibbles(codes, scales, np.empty((*scales.shape, 0), np.uint8))


def q5_0_blocks(codes: Bytes, scales: npt.NDArray[np.float16]) -> Bytes:
    """Blocks of `scale * (code - 16)`; codes from 0 to 31. Otherwise as `q4_0_blocks`."""
    upper = np.packbits((codes >> 4).reshape(*scales.shape, 32), axis=-1, bitorder="little")
    return _with_nibbles(codes & np.uint8(15), scales, upper)


def q8_0_blocks(codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float16]) -> Bytes:
    """Blocks of `scale * code`; signed codes. Otherwise as `q4_0_blocks`."""
    blocks = np.empty((*scales.shape, 34), np.uint8)
    blocks[..., :2] = scales[..., None].view(np.uint8)
    blocks[..., 2:] = codes.view(np.uint8).reshape(*scales.shape, 32)
    return blocks.reshape(scales.shape[0], -1)


def mxfp4_blocks(codes: Bytes, exponents: Bytes) -> Bytes:
    """MXFP4's blocks of E2M1 codes `[rows, inputs]` and E8M0 exponents `[rows, inputs / 32]`."""
    halves = codes.reshape(*exponents.shape, 2, 16)
    blocks = np.empty((*exponents.shape, 17), np.uint8)
    blocks[..., 0] = exponents
    blocks[..., 1:] = halves[..., 0, :] | (halves[..., 1, :] << 4)
    return blocks.reshape(exponents.shape[0], -1)


def _with_nibbles(codes: Bytes, scales: npt.NDArray[np.float16], upper: Bytes) -> Bytes:
    halves = codes.reshape(*scales.shape, 2, 16)
    begin = 2 + upper.shape[-1]
    blocks = np.empty((*scales.shape, begin + 16), np.uint8)
    blocks[..., :2] = scales[..., None].view(np.uint8)
    blocks[..., 2:begin] = upper
    np.left_shift(halves[..., 1, :], 4, out=blocks[..., begin:])
    blocks[..., begin:] |= halves[..., 0, :]
    return blocks.reshape(scales.shape[0], -1)
