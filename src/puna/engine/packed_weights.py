"""Weights in the form that kernels read: packed from a checkpoint, or mapped from the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from puna.engine.packed_cache.identity import WeightDigest, content_id, source_key
from puna.errors import WeightsError
from puna.graph.ops.op import Float32Array
from puna.graph.weights.weight_data import WeightData

if TYPE_CHECKING:
    from puna._native import PackedMatrix
    from puna.engine.packed_cache.packed_file import Content, PackedFile
    from puna.engine.packed_cache.store import PackedCache

__all__ = ["PackedWeights", "Packer", "pack_weights"]

Array = np.ndarray[Any, Any]
Precision = Literal["auto", "float32"]


class Packer(Protocol):
    """The part of `puna._native` that packs."""

    PACKED_LAYOUT: int

    def PackedMatrix(
        self, format: str, data: Array, rows: int, cols: int, precision: str, threads: int
    ) -> PackedMatrix: ...

    def blake2bp(self, data: Array) -> bytes: ...


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """Matrices packed for the kernels, vectors as float32, by full name.

    Attributes:
        matrices: The matrices.
        vectors: The vectors.
        content_id: The identity of the stored weights.
        file: The file that they are mapped from; None: they are in memory of their own.
    """

    matrices: Mapping[str, PackedMatrix]
    vectors: Mapping[str, Float32Array]
    content_id: str
    file: PackedFile | None = None

    def __getitem__(self, name: str) -> PackedMatrix | Float32Array:
        return self.matrices[name] if name in self.matrices else self.vectors[name]

    def partner(self, name: str) -> str:
        """What products with a matrix take: `"a8"` or `"f32"`."""
        return self.matrices[name].partner

    @property
    def nbytes(self) -> int:
        """Bytes of all packed weights."""
        packed = sum(matrix.nbytes for matrix in self.matrices.values())
        return packed + sum(vector.nbytes for vector in self.vectors.values())

    def check(self) -> None:
        """Raises WeightsError if the mapped file was cut, and zeros were read instead."""
        if self.file is not None and self.file.is_damaged:
            raise WeightsError("the packed weights were cut while they were in use; start again", file=self.file.path)


def pack_weights(
    native: Packer,
    weights: Mapping[str, WeightData],
    precision: Precision,
    threads: int,
    cache: PackedCache | None = None,
) -> PackedWeights:
    """Pack every matrix once, whoever uses it: a tied embedding and output matrix are one.

    Pages of weight files are given back as soon as they were packed. With a cache, what was packed by an earlier start
    is mapped instead, and weight files are not read beyond their headers; what was not, is written to the cache in the
    background.

    Raises:
        WeightsError: a file was cut while it was read.
    """
    key = source_key(weights) if cache is not None else None
    if cache is None or key is None:
        return _pack(native, weights, precision, threads)
    # Kernels of all variants read the same bytes.
    layout = f"{native.PACKED_LAYOUT}-{precision}"
    file = cache.find(key, layout)
    if file is not None:
        try:
            return _map(file, weights, precision)
        except WeightsError as error:
            cache.reject(file.path, error)
    packed = _pack(native, weights, precision, threads)
    parts = (part for weight in weights.values() for part in weight.parts)
    sources = sorted({str(part.source.path) for part in parts if part.source is not None})
    cache.store(key, packed.content_id, layout, _contents(weights, packed), sources)
    return packed


def _pack(native: Packer, weights: Mapping[str, WeightData], precision: Precision, threads: int) -> PackedWeights:
    matrices: dict[str, PackedMatrix] = {}
    vectors: dict[str, Float32Array] = {}
    digests = []
    for name, weight in weights.items():
        stored = np.ascontiguousarray(weight.data)
        if len(weight.shape) == 2:
            rows, cols = weight.shape
            blocks = stored.reshape(rows, -1).view(np.uint8)
            matrices[name] = native.PackedMatrix(weight.format, blocks, rows, cols, precision, threads)
            digest = matrices[name].digest
            if len(weight.parts) > 1:
                weight.release()  # decoded memory was packed, and pages of the files are still there
        else:
            vectors[name] = np.ascontiguousarray(weight.to_float32())
            digest = native.blake2bp(stored.reshape(-1).view(np.uint8))
            weight.release()  # whatever the system mapped around it
        weight.check()
        digests.append(WeightDigest(name, weight.format, weight.shape, digest))
    return PackedWeights(matrices, vectors, content_id(digests))


def _map(file: PackedFile, weights: Mapping[str, WeightData], precision: Precision) -> PackedWeights:
    matrices: dict[str, PackedMatrix] = {}
    vectors: dict[str, Float32Array] = {}
    for name, weight in weights.items():
        if len(weight.shape) == 2:
            matrices[name] = file.matrix(name, precision)
        else:
            vectors[name] = file.vector(name)
    return PackedWeights(matrices, vectors, file.content_id, file)


def _contents(weights: Mapping[str, WeightData], packed: PackedWeights) -> list[Content]:
    return [
        (name, "matrix", weight.format, weight.shape, memoryview(packed.matrices[name]))
        if name in packed.matrices
        else (name, "vector", "F32", weight.shape, packed.vectors[name].data)
        for name, weight in weights.items()
    ]
