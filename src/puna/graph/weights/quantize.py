"""Quantizing weights: piece by piece, and weights that are quantized when they are read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from puna.dtype import DType
from puna.errors import ShapeError, WeightsError
from puna.graph.quantization import QuantizationEncoding
from puna.graph.weights.weight_data import WeightData, stored_bytes

__all__ = ["QUANTIZER_VERSION", "DeferredQuantization", "quantized_pieces"]

QUANTIZER_VERSION: Final = 1
"""Changes whenever the same values are quantized to other bytes."""

_PIECE_ELEMENTS: Final = 1 << 21  # 8 MiB of float32
_FLOATS: Final = {"F32": DType.float32, "F16": DType.float16, "BF16": DType.bfloat16}

Array = np.ndarray[Any, Any]


def quantized_pieces(
    weight: WeightData,
    format: str,
    importance: NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """The rows of a weight as `format` stores them, uint8 `[rows, row bytes]`, some MiB at a time.

    The bytes are a function of values, format and importance alone.

    Args:
        weight: What is quantized.
        format: A GGML type, by name: a float type, or one that has a quantizer. Rows are whole blocks of it.
        importance: float32 `[columns]`: what the squared error of a column is multiplied by. None: 1.
        threads: How many work at once; None: as many as this process should use.

    Raises:
        WeightsError: A value is not finite, or too large for the format; or the file was cut while it was read.
    """
    from puna import _native

    rows, columns = math.prod(weight.shape[:-1]), weight.shape[-1]
    if len(weight.shape) != 2:
        weight = replace(weight, shape=(rows, columns), array=weight.data.reshape(rows, -1))
    step = max(1, _PIECE_ELEMENTS // columns)
    for begin in range(0, rows, step):
        part = weight.rows(begin, min(begin + step, rows))
        values = np.ascontiguousarray(part.to_float32())
        try:
            yield _native.quantize(format, values, importance, begin, threads=threads)
        except ValueError as error:
            file = weight.source.path if weight.source is not None else None
            raise WeightsError(str(error), file=file, tensor=weight.name) from error
    weight.release()


@dataclass(frozen=True, slots=True, eq=False)
class DeferredQuantization(WeightData):
    """A weight that is stored in one format and quantized to another whenever it is read.

    Format and size are those of the result; `array` and `source` are what is stored.

    Attributes:
        original: The stored weight.
    """

    original: WeightData | None = None

    @classmethod
    def of(cls, original: WeightData, format: str) -> DeferredQuantization:
        """`original`, a matrix, as `format`, a GGML type.

        Raises:
            ShapeError: It is no matrix, or its rows are not whole blocks.
        """
        encoding = None if format in _FLOATS else QuantizationEncoding(format)
        elements = encoding.elements_per_block if encoding is not None else 1
        if len(original.shape) != 2 or original.shape[1] % elements:
            expected = f"rows of a multiple of {elements}"
            raise ShapeError(f"{original.name!r} as {format}", original.shape, expected)
        dtype = _FLOATS.get(format, DType.uint8)
        return cls(original.name, dtype, original.shape, encoding, original.array, original.source, original)

    @property
    def data(self) -> Array:
        """The quantized blocks, uint8 `[rows, row bytes]`, or float elements; made anew at each access.

        Raises:
            WeightsError: as `quantized_pieces`.
        """
        assert self.original is not None, "only `of` makes one"
        pieces = list(quantized_pieces(self.original, self.format))
        stored = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return stored if self.quantization_encoding is not None else stored.view(self.dtype.to_numpy())

    @property
    def nbytes(self) -> int:
        """Bytes of the quantized weight."""
        return stored_bytes(self.shape, self.dtype, self.quantization_encoding)

    @property
    def parts(self) -> tuple[WeightData, ...]:
        """The stored tensors that the original is made of."""
        assert self.original is not None
        return self.original.parts

    @property
    def recipe(self) -> str:
        """What the values follow from beside the stored parts."""
        assert self.original is not None
        return f"{self.original.recipe} {self.original.format} quantized, {QUANTIZER_VERSION}"

    def release(self) -> None:
        """Give back the memory of file pages that were read. They are read anew on use."""
        assert self.original is not None
        self.original.release()

    def check(self) -> None:
        """As `WeightData.check`, of the original."""
        assert self.original is not None
        self.original.check()

    def rows(self, begin: int, end: int, name: str | None = None) -> WeightData:
        """The rows `begin:end`. Raises as `WeightData.rows`."""
        assert self.original is not None
        return DeferredQuantization.of(self.original.rows(begin, end, name), self.format)
