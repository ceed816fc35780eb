"""Weights of small integers: `scale * (code - zero)`, as GPTQ, AWQ and compressed-tensors write them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from puna.dtype import DType
from puna.graph.quantization import QuantizationEncoding
from puna.graph.weights.quantized.codes import (
    AWQ_COLUMNS,
    Bytes,
    Float32Array,
    awq_codes,
    bytes_of,
    q4_0_blocks,
    q5_0_blocks,
    q8_0_blocks,
    unpack_words,
)
from puna.graph.weights.quantized.matrix import QuantizedMatrix, finite_scales
from puna.graph.weights.weight_data import WeightData

__all__ = ["AwqMatrix", "GptqMatrix", "IntegerMatrix", "PackedMatrix", "PlainMatrix"]

_BLOCK = 32


@dataclass(frozen=True, eq=False)
class IntegerMatrix(QuantizedMatrix):
    """Codes of `bits` bits in groups of neighbouring inputs that share a scale and a zero point.

    Attributes:
        bits: 4 or 8.
        group_size: Inputs of a group.
        codes: The stored codes.
        scales: The stored scales.
        zeros: The stored zero points; None: the middle, `2 ** (bits - 1)`.
        groups: The group of each input, int32 `[inputs]`, where they are not in order; None: input i is in group
            `i // group_size`.
    """

    bits: int
    group_size: int
    codes: WeightData
    scales: WeightData
    zeros: WeightData | None
    groups: npt.NDArray[np.int32] | None = None

    @property
    def middle(self) -> int:
        """The zero point of symmetric codes."""
        return 1 << (self.bits - 1)

    @property
    def num_groups(self) -> int:
        """Groups of a row."""
        return -(-self.shape[1] // self.group_size)

    @property
    def block_encoding(self) -> QuantizationEncoding | None:
        """Q4_0 and Q8_0 hold symmetric codes of 4 and of 8 bits, Q5_0 the differences of 4-bit codes and zero points.

        Blocks of 32 must lie inside a group, and every scale must be a float16.
        """
        in_order = self.groups is None and self.shape[1] % _BLOCK == 0
        if not in_order or (self.group_size % _BLOCK and self.num_groups > 1) or not self._has_half_scales:
            return None
        if self.zeros is None:
            return QuantizationEncoding.Q4_0 if self.bits == 4 else QuantizationEncoding.Q8_0
        return QuantizationEncoding.Q5_0 if self.bits == 4 else None

    @property
    def rounded_format(self) -> str:
        """The type of the scales where it is float16, as the layouts' own kernels compute; else bfloat16."""
        return "F16" if self.scales.dtype is DType.float16 else "BF16"

    @property
    def is_exact_when_rounded(self) -> bool:
        """Never promised: a scale of 11 bits and a code have more than either type keeps."""
        return False

    def blocks(self, begin: int, end: int) -> Bytes:
        """As `QuantizedMatrix.blocks`."""
        scales = self.row_scales(begin, end)
        halves = np.repeat(scales.astype(np.float16), min(self.group_size, self.shape[1]) // _BLOCK, axis=1)
        halves = np.ascontiguousarray(halves[:, : self.shape[1] // _BLOCK])
        codes = self.row_codes(begin, end)
        if self.zeros is not None:
            zeros = self._per_input(self.row_zeros(begin, end))
            return q5_0_blocks((codes.astype(np.int16) - zeros + 16).astype(np.uint8), halves)
        if self.bits == 4:
            return q4_0_blocks(codes, halves)
        return q8_0_blocks((codes ^ 128).view(np.int8), halves)

    def values(self, begin: int, end: int) -> Float32Array:
        """As `QuantizedMatrix.values`."""
        codes = self.row_codes(begin, end).astype(np.int16)
        codes -= self._per_input(self.row_zeros(begin, end)) if self.zeros is not None else np.int16(self.middle)
        values: Float32Array = codes * self._per_input(self.row_scales(begin, end).astype(np.float32))
        return values

    def row_scales(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        """Scales of rows `begin:end`, `[rows, groups]`, in their stored type.

        Raises:
            WeightsError: one is not finite.
        """
        return finite_scales(self.scales, self._stored_scales(begin, end))

    @abstractmethod
    def row_codes(self, begin: int, end: int) -> Bytes:
        """Codes of rows `begin:end`, `[rows, inputs]`, from 0."""

    @abstractmethod
    def row_zeros(self, begin: int, end: int) -> npt.NDArray[np.int16]:
        """Zero points of rows `begin:end`, int16 `[rows, groups]`, on the scale of the codes."""

    @abstractmethod
    def _stored_scales(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        """Scales of rows `begin:end`, `[rows, groups]`."""

    @property
    def _has_half_scales(self) -> bool:
        if self.scales.dtype is DType.float16:
            return True
        values = self.scales.to_float32()
        with np.errstate(over="ignore"):
            return bool(np.array_equal(values.astype(np.float16).astype(np.float32), values))

    def _per_input(self, per_group: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if self.groups is not None:
            return per_group[:, self.groups]
        return np.repeat(per_group, self.group_size, axis=1)[:, : self.shape[1]]


@dataclass(frozen=True, eq=False)
class GptqMatrix(IntegerMatrix):
    """GPTQ: words along the inputs, `qweight` int32 `[inputs * bits / 32, outputs]`, `scales` `[groups, outputs]`,
    `qzeros` int32 `[groups, outputs * bits / 32]`.

    Attributes:
        zero_offset: What stored zero points are too small by: 1 in the first version of the format, 0 in the second.
        middles: Stored zero points of symmetric codes, which must all be the middle; None: there are none.
    """

    zero_offset: int = 1
    middles: WeightData | None = None

    def row_codes(self, begin: int, end: int) -> Bytes:
        """As `IntegerMatrix.row_codes`.

        Raises:
            WeightsError: the codes are said to be symmetric, and a zero point is not the middle.
        """
        if self.middles is not None:
            found = self._unpacked(self.middles, begin, end)
            odd = found[found != self.middle]
            if odd.size:
                wanted = f"the middle, {self.middle - self.zero_offset}"
                message = f"holds the zero point {odd[0] - self.zero_offset} where sym = true promises {wanted}"
                self.fail(self.middles, message)
        return unpack_words(self.codes.data[:, begin:end].T, self.bits)

    def row_zeros(self, begin: int, end: int) -> npt.NDArray[np.int16]:
        """As `IntegerMatrix.row_zeros`."""
        assert self.zeros is not None
        return self._unpacked(self.zeros, begin, end)

    def _unpacked(self, zeros: WeightData, begin: int, end: int) -> npt.NDArray[np.int16]:
        stored = unpack_words(zeros.data, self.bits)[:, begin:end].T
        return stored.astype(np.int16) + np.int16(self.zero_offset)

    def _stored_scales(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        return self.scales.data[:, begin:end].T


@dataclass(frozen=True, eq=False)
class AwqMatrix(IntegerMatrix):
    """AWQ for matrix products ("GEMM"): words along the outputs, `qweight` int32 `[inputs, outputs / 8]`, `qzeros`
    int32 `[groups, outputs / 8]`, both in AWQ's order of columns; `scales` `[groups, outputs]`.
    """

    def row_codes(self, begin: int, end: int) -> Bytes:
        """As `IntegerMatrix.row_codes`."""
        return self._rows(self.codes, begin, end)

    def row_zeros(self, begin: int, end: int) -> npt.NDArray[np.int16]:
        """As `IntegerMatrix.row_zeros`."""
        assert self.zeros is not None
        return self._rows(self.zeros, begin, end).astype(np.int16)

    def _rows(self, words: WeightData, begin: int, end: int) -> Bytes:
        first = begin // AWQ_COLUMNS
        codes = awq_codes(words.data[:, first : -(-end // AWQ_COLUMNS)])
        return codes[begin - first * AWQ_COLUMNS : end - first * AWQ_COLUMNS]

    def _stored_scales(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        return self.scales.data[:, begin:end].T


@dataclass(frozen=True, eq=False)
class PackedMatrix(IntegerMatrix):
    """compressed-tensors, `pack-quantized`: words along the inputs, `weight_packed` int32 `[outputs, words]`, the last
    one filled up; `weight_scale` `[outputs, groups]`; `weight_zero_point` int32 `[outputs * bits / 32, groups]`, words
    along the outputs.
    """

    def row_codes(self, begin: int, end: int) -> Bytes:
        """As `IntegerMatrix.row_codes`."""
        return np.ascontiguousarray(unpack_words(self.codes.data[begin:end], self.bits)[:, : self.shape[1]])

    def row_zeros(self, begin: int, end: int) -> npt.NDArray[np.int16]:
        """As `IntegerMatrix.row_zeros`."""
        assert self.zeros is not None
        return unpack_words(self.zeros.data.T, self.bits).T[begin:end].astype(np.int16)

    def _stored_scales(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        return _rows_of_scales(self.scales, begin, end)


@dataclass(frozen=True, eq=False)
class PlainMatrix(IntegerMatrix):
    """compressed-tensors, `int-quantized` and `naive-quantized`: signed codes in int8, `weight` `[outputs, inputs]`,
    `weight_scale` and `weight_zero_point` `[outputs, groups]`, or a single number for the whole matrix.
    """

    def row_codes(self, begin: int, end: int) -> Bytes:
        """As `IntegerMatrix.row_codes`.

        Raises:
            WeightsError: a code does not fit into `bits` bits.
        """
        codes = bytes_of(self.codes.data[begin:end]) + np.uint8(self.middle)
        if self.bits < 8 and int(codes.max(initial=0)) >= 1 << self.bits:
            self.fail(self.codes, f"holds a code that does not fit into the {self.bits} bits that num_bits states")
        return codes

    def row_zeros(self, begin: int, end: int) -> npt.NDArray[np.int16]:
        """As `IntegerMatrix.row_zeros`."""
        assert self.zeros is not None
        zeros = _rows_of_scales(self.zeros, begin, end).astype(np.int16)
        if int(np.abs(zeros).max(initial=0)) > self.middle:
            self.fail(self.zeros, f"holds a zero point that does not fit into {self.bits} bits")
        return zeros + np.int16(self.middle)

    def _stored_scales(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        return _rows_of_scales(self.scales, begin, end)


def _rows_of_scales(part: WeightData, begin: int, end: int) -> np.ndarray[Any, Any]:
    """Rows `begin:end` of `[outputs, groups]`, of `[outputs]`, or of one number for all."""
    stored = part.data
    if stored.size == 1:
        return np.broadcast_to(stored.reshape(1, 1), (end - begin, 1))
    return stored[begin:end].reshape(end - begin, -1)


