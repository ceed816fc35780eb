"""`WeightData`: one named array of a checkpoint, in the form in which it is stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np

from puna.driver import Buffer
from puna.dtype import DType
from puna.errors import ShapeError
from puna.graph.quantization import QuantizationEncoding
from puna.graph.weights.mapping import MappedWeights

__all__ = ["WeightData"]

Array: TypeAlias = np.ndarray[Any, Any]

# Names of the element types, as GGUF or (for the types that GGUF lacks) safetensors writes them.
_FORMATS: Final = MappingProxyType({
    DType.bool: "BOOL",
    DType.int8: "I8",
    DType.int16: "I16",
    DType.int32: "I32",
    DType.int64: "I64",
    DType.uint8: "U8",
    DType.uint16: "U16",
    DType.uint32: "U32",
    DType.uint64: "U64",
    DType.float16: "F16",
    DType.bfloat16: "BF16",
    DType.float32: "F32",
    DType.float64: "F64",
    DType.float8_e4m3fn: "F8_E4M3",
    DType.float8_e4m3fnuz: "F8_E4M3FNUZ",
    DType.float8_e5m2: "F8_E5M2",
    DType.float8_e5m2fnuz: "F8_E5M2FNUZ",
    DType.float8_e8m0fnu: "F8_E8M0",
    DType.float6_e2m3fn: "F6_E2M3",
    DType.float6_e3m2fn: "F6_E3M2",
    DType.float4_e2m1fn: "F4",
})


@dataclass(frozen=True, slots=True, eq=False)
class WeightData:
    """A weight as it is stored: data, type, logical shape.

    Attributes:
        name: the name in the checkpoint, for messages.
        dtype: element type of `data`; `uint8` for a quantized weight.
        shape: the logical shape, in elements, outermost axis first (`[out, in]` for a linear layer).
        quantization_encoding: how the blocks of a quantized weight are coded; None for plain elements.
        array: the stored elements; see `data`.
        source: the file mapping that `array` is a view of, if any.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    quantization_encoding: QuantizationEncoding | None
    array: Array
    source: MappedWeights | None = None

    @classmethod
    def from_numpy(cls, array: Array, name: str) -> WeightData:
        """A weight of plain elements that shares the memory of `array`.

        Raises:
            ValueError: the array's type has no `DType`.
        """
        return cls(name, DType.from_numpy(array.dtype), tuple(array.shape), None, array)

    @classmethod
    def from_blocks(cls, blocks: Array, name: str, encoding: QuantizationEncoding) -> WeightData:
        """A quantized weight that shares the memory of its blocks.

        Args:
            blocks: uint8 `[..., row_bytes]`; `row_bytes` is a multiple of the encoding's block size.
            name: its name, for messages.
            encoding: how the blocks are coded.

        Raises:
            ShapeError: a row is not a whole number of blocks.
            ValueError: the encoding has no blocks (GPTQ).
        """
        row_bytes, block = blocks.shape[-1], encoding.block_parameters
        if blocks.dtype != np.uint8 or row_bytes % block.block_size:
            raise ShapeError(f"{name!r} as {encoding}", f"{blocks.dtype}{list(blocks.shape)}", f"rows of {block}")
        cols = row_bytes // block.block_size * block.elements_per_block
        return cls(name, DType.uint8, (*blocks.shape[:-1], cols), encoding, blocks)

    @property
    def data(self) -> Array:
        """The stored elements, row-major, sharing the file's memory.

        Plain elements: `dtype`, `shape`. A quantized weight: uint8 `[..., row_bytes]`. The one exception to sharing is
        a safetensors file whose header leaves a tensor at an odd address: its data is an aligned copy, made at each
        access.
        """
        return self.array if self.array.flags.aligned else self.array.copy()

    @property
    def format(self) -> str:
        """The name of the storage format: `F32`, `BF16`, `Q4_K`, `F8_E4M3`, `I32`, …"""
        return str(self.quantization_encoding) if self.quantization_encoding else _FORMATS[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of the stored data."""
        return self.array.nbytes

    @property
    def parts(self) -> tuple[WeightData, ...]:
        """The stored tensors that the weight is made of: itself, unless codes and scales are tensors of their own."""
        return (self,)

    @property
    def recipe(self) -> str:
        """What the values follow from beside the stored parts."""
        return ""

    def release(self) -> None:
        """Give back the memory of file pages that were read. They are read anew on use."""
        if self.source is not None:
            self.source.release()

    def check(self) -> None:
        """Call after reading `data`, before using what was read.

        Raises:
            WeightsError: the file became shorter in the meantime; what was read is partly zeros.
        """
        if self.source is not None:
            self.source.check(self.name)

    def to_buffer(self) -> Buffer:
        """The stored elements as a buffer that shares their memory."""
        return Buffer.from_numpy(self.data)

    def to_float32(self) -> Array:
        """The values as float32 `[*shape]`: blocks are dequantized exactly as the format defines, other types are
        converted.

        Raises:
            WeightsError: the file became shorter while it was being read.
        """
        if self.quantization_encoding is None:
            values = _converted(self.data, DType.float32)
        else:
            from puna import _native  # heavy, and needed by nobody who only looks at a file

            stored = np.ascontiguousarray(self.data)
            rows = stored.reshape(-1, stored.shape[-1])
            values = _native.dequantize(self.format, rows, self.shape[-1]).reshape(self.shape)
        self.check()
        return values

    def astype(self, dtype: DType) -> WeightData:
        """The weight with its values converted to another type (round to nearest, ties to even); the encoding is gone.

        The same type gives the same object. A quantized weight is `uint8`; any other type means its dequantized values.

        Raises:
            WeightsError: the file became shorter while it was being read.
        """
        if dtype is self.dtype:
            return self
        values = self.data if self.quantization_encoding is None else self.to_float32()
        converted = _converted(values, dtype)
        self.check()
        return WeightData(self.name, dtype, self.shape, None, converted)

    def rows(self, begin: int, end: int, name: str | None = None) -> WeightData:
        """The slices `begin:end` along the first axis, sharing the memory.

        Raises:
            ShapeError: the range is not inside the first axis, or there is only one axis of blocks.
        """
        inside = bool(self.shape) and 0 <= begin <= end <= self.shape[0]
        if not inside or (self.quantization_encoding is not None and len(self.shape) < 2):
            raise ShapeError(f"{self.name!r}", self.shape, f"at least rows {begin} to {end}")
        shape = (end - begin, *self.shape[1:])
        return replace(self, name=name or self.name, shape=shape, array=self.array[begin:end])

    @staticmethod
    def concat(parts: Sequence[WeightData], name: str) -> WeightData:
        """One weight of several, one after the other along the first axis (a copy).

        Raises:
            ValueError: no parts, or they are stored in different formats.
            ShapeError: their other axes differ.
            WeightsError: a file became shorter while it was being read.
        """
        if not parts:
            raise ValueError(f"{name!r}: there is nothing to concatenate")
        first = parts[0]
        for part in parts[1:]:
            if part.format != first.format:
                raise ValueError(f"{name!r}: {part.name!r} is {part.format}, {first.name!r} is {first.format}")
            if part.shape[1:] != first.shape[1:] or not part.shape:
                raise ShapeError(f"{part.name!r}", part.shape, f"(any, {', '.join(map(str, first.shape[1:]))})")
        shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
        return first._joined(parts, name, shape)

    def _joined(self, parts: Sequence[WeightData], name: str, shape: tuple[int, ...]) -> WeightData:
        """`concat`, of parts that fit each other and of which this is the first."""
        array = np.concatenate([part.data for part in parts])
        for part in parts:
            part.check()
        return WeightData(name, self.dtype, shape, self.quantization_encoding, array)

    def __repr__(self) -> str:
        return f"WeightData({self.name!r}, {self.format}, {list(self.shape)})"


def _converted(values: Array, dtype: DType) -> Array:
    # A value that the type cannot hold becomes its infinity or NaN; whether a model may have such is not decided here.
    with np.errstate(all="ignore"):
        return values.astype(dtype.to_numpy(), copy=False)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies in a checked file: `nbytes` bytes from `begin`, and what they are."""

    name: str
    source: MappedWeights
    begin: int
    nbytes: int
    dtype: DType
    shape: tuple[int, ...]
    quantization_encoding: QuantizationEncoding | None = None

    @property
    def stored_as(self) -> str:
        """The name of the type or the block format, as configurations write it: `bfloat16`, `q4_k`."""
        return self.quantization_encoding.name if self.quantization_encoding is not None else str(self.dtype)

    def load(self) -> WeightData:
        """The weight, as a view of the file."""
        raw = self.source.array[self.begin : self.begin + self.nbytes]
        if self.quantization_encoding is None:
            array = raw.view(self.dtype.to_numpy()).reshape(self.shape)
        else:
            block = self.quantization_encoding.block_parameters
            row_bytes = self.shape[-1] // block.elements_per_block * block.block_size
            array = raw.reshape(*self.shape[:-1], row_bytes)
        return WeightData(self.name, self.dtype, self.shape, self.quantization_encoding, array, self.source)


def stored_bytes(shape: Sequence[int], dtype: DType, encoding: QuantizationEncoding | None) -> int:
    """Bytes that a tensor of this logical shape takes in a file.

    The last axis of a quantized tensor is a whole number of blocks; readers check that first.
    """
    elements = math.prod(shape)
    if encoding is None:
        return elements * dtype.size_in_bytes
    block = encoding.block_parameters
    assert shape and shape[-1] % block.elements_per_block == 0
    return elements // block.elements_per_block * block.block_size
