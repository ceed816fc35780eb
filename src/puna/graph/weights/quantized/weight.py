"""`QuantizedWeight`: a weight that is decoded when it is packed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np

from puna.dtype import DType
from puna.errors import ShapeError
from puna.graph.weights.quantized.matrix import QuantizedMatrix
from puna.graph.weights.weight_data import WeightData

__all__ = ["QuantizedWeight", "Rows"]

_ROWS: Final = 64  # decoded at once; what is made of them stays in a core's cache
_DTYPES: Final = {"BF16": DType.bfloat16, "F16": DType.float16, "F32": DType.float32}
_NOTHING: Final = np.empty(0, np.uint8)


class Rows(NamedTuple):
    """Rows `begin:end` of a matrix."""

    matrix: QuantizedMatrix
    begin: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedWeight(WeightData):
    """A weight whose stored form is several tensors. `data` decodes it, each time anew, and keeps nothing.

    Its `format` is a block format that holds the same values where there is one; else bfloat16 or float16, to which
    values are rounded; or float32 (`widened`), which keeps them.

    Attributes:
        segments: The rows that it is made of, one after the other.
    """

    segments: tuple[Rows, ...] = ()

    @classmethod
    def of(cls, matrix: QuantizedMatrix) -> QuantizedWeight:
        """The whole matrix. Where no block format holds its values, they are rounded."""
        encoding = matrix.block_encoding
        dtype = DType.uint8 if encoding is not None else _DTYPES[matrix.rounded_format]
        source = matrix.parts[0].source
        return cls(matrix.name, dtype, matrix.shape, encoding, _NOTHING, source, (Rows(matrix, 0, matrix.shape[0]),))

    @property
    def data(self) -> np.ndarray[Any, Any]:
        """The weight in its `format`, as `WeightData.data`: decoded now, by several threads.

        Raises:
            WeightsError: a scale that is not finite, a code or zero point out of range, a file that was cut.
        """
        encoding = self.quantization_encoding
        if encoding is None:
            decoded = np.empty(self.shape, self.dtype.to_numpy())
        else:
            columns = self.shape[1] // encoding.elements_per_block * encoding.block_size
            decoded = np.empty((self.shape[0], columns), np.uint8)
        pieces = []
        at = 0
        for matrix, begin, end in self.segments:
            for first in range(begin, end, _ROWS):
                last = min(first + _ROWS, end)
                pieces.append((matrix, first, last, decoded[at : at + last - first]))
                at += last - first
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for _done in pool.map(self._decode, pieces):
                pass
        self.check()
        return decoded

    def _decode(self, piece: tuple[QuantizedMatrix, int, int, np.ndarray[Any, Any]]) -> None:
        matrix, begin, end, out = piece
        if self.quantization_encoding is not None:
            out[...] = matrix.blocks(begin, end)
            return
        with np.errstate(over="ignore", under="ignore"):
            out[...] = matrix.values(begin, end)
        if not np.isfinite(out.astype(np.float32)).all():
            matrix.fail(matrix.parts[0], f"holds a value that is too large for {self.dtype}")

    @property
    def stored_as(self) -> str:
        """The encoding that a checkpoint stores it in: `gptq`, `float8_e4m3fn`, …"""
        return self.segments[0].matrix.stored_as

    @property
    def nbytes(self) -> int:
        """Bytes of the stored parts: those of the rows that are used."""
        used = sum(rows.matrix.nbytes * (rows.end - rows.begin) / rows.matrix.shape[0] for rows in self.segments)
        return round(used)

    @property
    def parts(self) -> tuple[WeightData, ...]:
        """The stored tensors that it is made of."""
        matrices = {id(rows.matrix): rows.matrix for rows in self.segments}
        return tuple(part for matrix in matrices.values() for part in matrix.parts)

    @property
    def recipe(self) -> str:
        """What its values follow from beside the stored parts."""
        return repr([(rows.matrix.scheme, rows.begin, rows.end) for rows in self.segments])

    def check(self) -> None:
        """As `WeightData.check`, of every part."""
        for rows in self.segments:
            rows.matrix.check()

    def release(self) -> None:
        """As `WeightData.release`, of every part."""
        for part in self.parts:
            part.release()

    def widened(self) -> QuantizedWeight:
        """The weight without rounding: in float32 where its format does not hold the values."""
        is_exact = self.quantization_encoding is not None or all(
            rows.matrix.is_exact_when_rounded for rows in self.segments
        )
        return self if is_exact else replace(self, dtype=DType.float32)

    def rows(self, begin: int, end: int, name: str | None = None) -> QuantizedWeight:
        """As `WeightData.rows`."""
        if not 0 <= begin <= end <= self.shape[0]:
            raise ShapeError(f"{self.name!r}", self.shape, f"at least rows {begin} to {end}")
        segments, at = [], 0
        for matrix, first, last in self.segments:
            low, high = max(begin - at, 0), min(end - at, last - first)
            if low < high:
                segments.append(Rows(matrix, first + low, first + high))
            at += last - first
        shape = (end - begin, *self.shape[1:])
        return replace(self, name=name or self.name, shape=shape, segments=tuple(segments))

    def _joined(self, parts: Sequence[WeightData], name: str, shape: tuple[int, ...]) -> WeightData:
        known = [part for part in parts if isinstance(part, QuantizedWeight)]
        if len(known) < len(parts):
            return WeightData._joined(self, parts, name, shape)
        return replace(self, name=name, shape=shape, segments=tuple(rows for part in known for rows in part.segments))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.asarray(self.data, dtype=dtype)

    def __repr__(self) -> str:
        return f"QuantizedWeight({self.name!r}, {self.stored_as} as {self.format}, {list(self.shape)})"
