"""The layouts of quantized layers: from the tensors of one layer to its weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from puna.dtype import DType
from puna.errors import WeightsError
from puna.graph.weights.quantized.integers import AwqMatrix, GptqMatrix, PackedMatrix, PlainMatrix
from puna.graph.weights.quantized.matrix import QuantizedMatrix, refuse
from puna.graph.weights.quantized.narrow_floats import NarrowFloatMatrix
from puna.graph.weights.weight_data import WeightData

__all__ = ["AwqScheme", "FloatScheme", "GptqScheme", "IntegerScheme", "Layer", "LayerScheme"]

_FLOATS: Final = (DType.float16, DType.bfloat16, DType.float32)
_FLOAT8: Final = (DType.float8_e4m3fn, DType.float8_e5m2)
_CODES_PER_BYTE: Final = 2


@dataclass(frozen=True)
class Layer:
    """The tensors of one quantized layer.

    Attributes:
        name: The layer's name in the checkpoint.
        tensors: Its tensors by the last part of their names.
    """

    name: str
    tensors: Mapping[str, WeightData]

    def get(self, suffix: str, dtypes: tuple[DType, ...], *shapes: tuple[int, ...] | None) -> WeightData:
        """The tensor of this name.

        Args:
            suffix: The last part of its name.
            dtypes: Types that it may have.
            shapes: Shapes that it may have; None, or none: any.

        Raises:
            WeightsError: it is missing, or of another type or shape.
        """
        part = self.tensors.get(suffix)
        if part is None:
            other = next(iter(self.tensors.values()))
            file = other.source.path if other.source is not None else None
            raise WeightsError(f"is missing; {other.name!r} needs it", file=file, tensor=f"{self.name}.{suffix}")
        if part.dtype not in dtypes:
            refuse(part, f"has type {part.dtype}, its layout has {' or '.join(map(str, dtypes))}")
        if shapes and part.shape not in shapes and None not in shapes:
            expected = " or ".join(str(list(shape)) for shape in shapes if shape is not None)
            refuse(part, f"has shape {list(part.shape)}, {expected} is expected")
        return part

    def first_of(self, suffixes: tuple[str, ...]) -> str:
        """The first of some names that the layer has a tensor of; the last one if it has none."""
        return next((suffix for suffix in suffixes if suffix in self.tensors), suffixes[-1])

    def find(self, suffix: str, dtypes: tuple[DType, ...], *shapes: tuple[int, ...] | None) -> WeightData | None:
        """As `get`, None where it is missing."""
        return self.get(suffix, dtypes, *shapes) if suffix in self.tensors else None

    def matrix_shape(
        self, part: WeightData, *, inputs: int = 1, outputs: int = 1, transposed: bool = False
    ) -> tuple[int, int]:
        """(outputs, inputs) of codes of which `inputs` or `outputs` are in one element of a stored matrix.

        Raises:
            WeightsError: it is no matrix, or an empty one.
        """
        if len(part.shape) != 2 or 0 in part.shape:
            refuse(part, f"has shape {list(part.shape)}, a matrix is expected")
        rows, columns = reversed(part.shape) if transposed else part.shape
        return rows * outputs, columns * inputs


@dataclass(frozen=True)
class LayerScheme(ABC):
    """How the tensors of a layer make up its weight."""

    suffixes: ClassVar[frozenset[str]]
    """Last parts of the names of all tensors that a layer may have beside `bias`."""

    @property
    @abstractmethod
    def encoding(self) -> str:
        """The name of the encoding, for people."""

    @abstractmethod
    def read(self, layer: Layer) -> QuantizedMatrix:
        """The weight of a layer. Codes are not read, only what must be known of their sizes and groups.

        Raises:
            WeightsError: a tensor is missing, has another type or shape, or names a group that there is not.
        """


@dataclass(frozen=True)
class GptqScheme(LayerScheme):
    """GPTQ.

    Attributes:
        bits: 4 or 8.
        group_size: Inputs that share a scale; -1: all.
        symmetric: Whether all zero points are the middle.
        zero_offset: What stored zero points are too small by: 1 in `gptq`, 0 in `gptq_v2`.
    """

    suffixes = frozenset({"qweight", "qzeros", "scales", "g_idx"})

    bits: int
    group_size: int
    symmetric: bool
    zero_offset: int = 1

    @property
    def encoding(self) -> str:
        """`gptq`."""
        return "gptq"

    def read(self, layer: Layer) -> QuantizedMatrix:
        """As `LayerScheme.read`."""
        per_word = 32 // self.bits
        codes = layer.get("qweight", (DType.int32, DType.uint32))
        outputs, inputs = layer.matrix_shape(codes, inputs=per_word, transposed=True)
        size = inputs if self.group_size == -1 else self.group_size
        groups = -(-inputs // size)
        scales = layer.get("scales", _FLOATS, (groups, outputs))
        if outputs % per_word:
            refuse(codes, f"has {outputs} outputs, words of zero points hold {per_word}")
        words = (groups, outputs // per_word)
        find = layer.find if self.symmetric else layer.get
        zeros = find("qzeros", (DType.int32, DType.uint32), words)
        order = _group_order(layer.find("g_idx", (DType.int32, DType.int64), (inputs,)), size, groups)
        parts = (codes, scales, *(part for part in (zeros, layer.tensors.get("g_idx")) if part is not None))
        return GptqMatrix(
            f"{layer.name}.weight",
            (outputs, inputs),
            parts,
            repr(self),
            self.encoding,
            self.bits,
            size,
            codes,
            scales,
            None if self.symmetric else zeros,
            order,
            self.zero_offset,
            zeros if self.symmetric else None,
        )


@dataclass(frozen=True)
class AwqScheme(LayerScheme):
    """AWQ in its layout for matrix products: 4 bits.

    Attributes:
        group_size: Inputs that share a scale and a zero point; -1: all.
    """

    suffixes = frozenset({"qweight", "qzeros", "scales"})

    group_size: int

    @property
    def encoding(self) -> str:
        """`awq`."""
        return "awq"

    def read(self, layer: Layer) -> QuantizedMatrix:
        """As `LayerScheme.read`."""
        codes = layer.get("qweight", (DType.int32, DType.uint32))
        outputs, inputs = layer.matrix_shape(codes, outputs=8, transposed=True)
        size = inputs if self.group_size == -1 else self.group_size
        groups = -(-inputs // size)
        scales = layer.get("scales", _FLOATS, (groups, outputs))
        zeros = layer.get("qzeros", (DType.int32, DType.uint32), (groups, outputs // 8))
        name, shape = f"{layer.name}.weight", (outputs, inputs)
        return AwqMatrix(name, shape, (codes, scales, zeros), repr(self), self.encoding, 4, size, codes, scales, zeros)


@dataclass(frozen=True)
class IntegerScheme(LayerScheme):
    """compressed-tensors' integers, packed or in int8. Scales of activations are not needed: these are not rounded to
    the same grid.

    Attributes:
        bits: 4 or 8.
        group_size: Inputs that share a scale; -1: all of a row; 0: all of the matrix.
        symmetric: Whether all zero points are 0.
    """

    suffixes = frozenset(
        {
            *("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
            *("input_scale", "input_zero_point", "input_global_scale"),
        }
    )

    bits: int
    group_size: int
    symmetric: bool

    @property
    def encoding(self) -> str:
        """`int4` or `int8`."""
        return f"int{self.bits}"

    def read(self, layer: Layer) -> QuantizedMatrix:
        """As `LayerScheme.read`."""
        is_packed = "weight_packed" in layer.tensors
        if is_packed:
            codes = layer.get("weight_packed", (DType.int32,))
            outputs, inputs = self._packed_shape(layer, codes)
        else:
            codes = layer.get("weight", (DType.int8,))
            outputs, inputs = layer.matrix_shape(codes)
        size = self.group_size if self.group_size > 0 else inputs
        groups = -(-inputs // size)
        shapes = _scale_shapes(outputs, groups, is_whole=self.group_size == 0)
        scales = layer.get("weight_scale", _FLOATS, *shapes)
        zeros = None
        if not self.symmetric:
            if is_packed and self.group_size != 0:
                words = (-(-outputs // (32 // self.bits)), groups)
                zeros = layer.get("weight_zero_point", (DType.int32,), words)
            else:
                zeros = layer.get("weight_zero_point", (DType.int8, DType.int32, DType.int64), *shapes)
        order = _group_order(layer.find("weight_g_idx", (DType.int32, DType.int64), (inputs,)), size, groups)
        kept = (codes, scales, zeros, layer.tensors.get("weight_g_idx"))
        kind = PackedMatrix if is_packed else PlainMatrix
        return kind(
            f"{layer.name}.weight",
            (outputs, inputs),
            tuple(part for part in kept if part is not None),
            repr(self),
            self.encoding,
            self.bits,
            size,
            codes,
            scales,
            zeros,
            order,
        )

    def _packed_shape(self, layer: Layer, codes: WeightData) -> tuple[int, int]:
        outputs, room = layer.matrix_shape(codes, inputs=32 // self.bits)
        stated = layer.find("weight_shape", (DType.int32, DType.int64), (2,))
        if stated is None:
            return outputs, room
        shape = (int(stated.data[0]), int(stated.data[1]))
        if shape[0] != outputs or not room - 32 // self.bits < shape[1] <= room:
            refuse(stated, f"states {list(shape)}, which {codes.name!r} of shape {list(codes.shape)} does not hold")
        return shape


@dataclass(frozen=True)
class FloatScheme(LayerScheme):
    """FP8 or FP4 with scales. Scales of activations are not needed: these are not rounded to such types.

    Attributes:
        encoding_name: The encoding's name.
        elements: Names that the elements' tensor may have; the first that is there counts.
        scales: The same for the scales' tensor.
        tile: Outputs and inputs that share a scale; 0: all.
        has_exponents: Whether scales are E8M0.
        factor: The name of the scale of the whole matrix, or None.
        divides: Whether that one divides.
    """

    suffixes = frozenset(
        {
            *("weight", "weight_packed", "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_global_scale"),
            *("weight_shape", "input_scale", "input_scale_ub", "input_global_scale", "activation_scale"),
        }
    )

    encoding_name: str
    elements: tuple[str, ...]
    scales: tuple[str, ...]
    tile: tuple[int, int]
    has_exponents: bool = False
    factor: str | None = None
    divides: bool = False

    @property
    def is_fp4(self) -> bool:
        """Whether two elements are in a byte."""
        return self.encoding_name in ("float4_e2m1fnx2", "mxfp4")

    @property
    def encoding(self) -> str:
        """The encoding's name."""
        return self.encoding_name

    def read(self, layer: Layer) -> QuantizedMatrix:
        """As `LayerScheme.read`."""
        elements = layer.get(layer.first_of(self.elements), (DType.uint8,) if self.is_fp4 else _FLOAT8)
        outputs, inputs = layer.matrix_shape(elements, inputs=_CODES_PER_BYTE if self.is_fp4 else 1)
        tile = (self.tile[0] or outputs, self.tile[1] or inputs)
        tiles = (-(-outputs // tile[0]), -(-inputs // tile[1]))
        e8m0, e4m3 = DType.float8_e8m0fnu, DType.float8_e4m3fn
        dtypes = (DType.uint8, e8m0) if self.has_exponents else (*_FLOATS, e4m3 if self.is_fp4 else e8m0)
        scales = layer.get(layer.first_of(self.scales), dtypes, *_scale_shapes(*tiles, is_whole=tiles == (1, 1)))
        factor = None
        if self.factor is not None:
            factor = layer.get(self.factor, _FLOATS, (), (1,), (1, 1))
        parts = (elements, scales) if factor is None else (elements, scales, factor)
        name = f"{layer.name}.weight"
        return NarrowFloatMatrix(
            name, (outputs, inputs), parts, repr(self), self.encoding, elements, scales, tile, factor, self.divides
        )


def _scale_shapes(rows: int, columns: int, *, is_whole: bool) -> tuple[tuple[int, ...], ...]:
    if is_whole:
        return ((), (1,), (1, 1))
    return ((rows, columns), (rows,)) if columns == 1 else ((rows, columns),)


def _group_order(stored: WeightData | None, size: int, groups: int) -> npt.NDArray[np.int32] | None:
    """The group of each input; None where input i is in group `i // size`.

    Raises:
        WeightsError: a group that there is not.
    """
    if stored is None:
        return None
    order = np.ascontiguousarray(stored.data)
    if int(order.min(initial=0)) < 0 or int(order.max(initial=0)) >= groups:
        wrong = order[(order < 0) | (order >= groups)][0]
        refuse(stored, f"names group {wrong}, there are {groups}")
    if np.array_equal(order, np.arange(order.size) // size):
        return None
    return order.astype(np.int32)
