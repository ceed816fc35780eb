"""Adapters as programs read them: packed low-rank matrices, and the slots that a step names them by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from puna.dtype import DType
from puna.engine.packed_cache.identity import WeightDigest, content_id
from puna.errors import UnsupportedModelError
from puna.graph.ops.lora import target_number
from puna.graph.ops.op import Float32Array
from puna.graph.weights.weight_data import WeightData

if TYPE_CHECKING:
    from puna import _native

__all__ = ["AdapterKey", "AdapterSlots", "LowRank", "PackedAdapter"]

_DTYPES: Final = (DType.float32, DType.float16, DType.bfloat16)


class AdapterKey(NamedTuple):
    """A product that an adapter updates.

    Attributes:
        layer: Its layer; -1 outside of layers.
        target: Its name, of `LAYER_TARGETS` or `MODEL_TARGETS`.
    """

    layer: int
    target: str

    def __str__(self) -> str:
        return self.target if self.layer < 0 else f"layers.{self.layer}.{self.target}"


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is added to a product y = W x: `scale * B (A x)`.

    Attributes:
        a: `[rank, inputs]`; of `embed_tokens` `[vocabulary, rank]`. float32, float16 or bfloat16.
        b: `[outputs, rank]`, likewise.
        scale: The factor.
    """

    a: WeightData
    b: WeightData
    scale: float


class PackedAdapter:
    """The matrices of an adapter, packed for the kernels as they are stored. Nothing of it ever changes.

    Args:
        updates: What it adds, by product.

    Raises:
        UnsupportedModelError: a matrix of another element type.
        WeightsError: a file was cut while it was read.

    Attributes:
        rank: The largest rank of its updates.
        nbytes: Bytes of the packed matrices.
        content_id: Its identity: 64 hex digits, a function of which products it updates with which numbers.
    """

    def __init__(self, updates: Mapping[AdapterKey, LowRank]) -> None:
        from puna import _native

        self.native = _native.Adapter()
        self._matrices: dict[AdapterKey, tuple[_native.PackedMatrix, _native.PackedMatrix, float]] = {}
        packed: dict[WeightData, _native.PackedMatrix] = {}
        digests = []
        for key, update in updates.items():
            pair = []
            for part, weight in (("A", update.a), ("B", update.b)):
                if weight not in packed:  # parts of a stacked product have one A
                    packed[weight] = _pack(weight)
                matrix = packed[weight]
                pair.append(matrix)
                scale = np.float32(update.scale)
                digests.append(WeightDigest(f"{key} {part} {scale!r}", weight.format, weight.shape, matrix.digest))
            self._matrices[key] = (pair[0], pair[1], update.scale)
            self.native.set(key.layer, target_number(key.target), pair[0], pair[1], update.scale)
        self.rank = self.native.rank
        self.nbytes = sum(matrix.nbytes for matrix in packed.values())
        self.content_id = content_id(digests)

    def arrays(self, key: AdapterKey) -> tuple[Float32Array, Float32Array, float] | None:
        """A, B and scale of an update as float32, or None where there is none."""
        found = self._matrices.get(key)
        if found is None:
            return None
        a, b = (matrix.rows_f32(np.arange(matrix.rows, dtype=np.int64)) for matrix in found[:2])
        return a, b, found[2]


class AdapterSlots:
    """The adapters that a step can name, by number. Programs over it see each change with the next step.

    Args:
        count: How many at once, from 1.
    """

    def __init__(self, count: int) -> None:
        from puna import _native

        self.native = _native.AdapterSlots(count)
        self._adapters: list[PackedAdapter | None] = [None] * count

    def __len__(self) -> int:
        return len(self._adapters)

    def __getitem__(self, slot: int) -> PackedAdapter | None:
        return self._adapters[slot]

    def __setitem__(self, slot: int, adapter: PackedAdapter | None) -> None:
        self.native.set(slot, None if adapter is None else adapter.native)
        self._adapters[slot] = adapter


def _pack(weight: WeightData) -> _native.PackedMatrix:
    from puna import _native

    if weight.quantization_encoding is not None or weight.dtype not in _DTYPES:
        supported = ", ".join(map(str, _DTYPES))
        raise UnsupportedModelError(f"format of {weight.name!r}", weight.format, supported=supported)
    rows, cols = weight.shape
    stored = np.ascontiguousarray(weight.data).reshape(rows, -1).view(np.uint8)
    matrix = _native.PackedMatrix(weight.format, stored, rows, cols, "float32", 1)
    weight.check()
    return matrix
