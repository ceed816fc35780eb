"""Weights of a graph, declared after what a checkpoint holds and checked against what the model needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from puna.dtype import DType
from puna.errors import UnsupportedModelError, WeightsError
from puna.graph import Weight

if TYPE_CHECKING:
    from puna.graph.weights.weight_data import WeightData

__all__ = ["WeightDeclarations"]

_PLAIN_TYPES: Final = (DType.float32, DType.float16, DType.bfloat16)


@dataclass(frozen=True)
class WeightDeclarations:
    """Declares weights by name; each is looked up so that its storage type and encoding are the checkpoint's own.

    Attributes:
        weights: The checkpoint, by internal name.
        prefix: Put before a name to look it up.
        base: How much of the prefix declared names leave out: that of the call, in a subgraph.
    """

    weights: Mapping[str, WeightData]
    prefix: str = ""
    base: str = ""

    def scoped(self, prefix: str) -> WeightDeclarations:
        """Declarations of the weights below `prefix`."""
        return replace(self, prefix=self.prefix + prefix)

    def relative(self) -> WeightDeclarations:
        """The same weights with names that leave out everything so far, as a subgraph declares them."""
        return replace(self, base=self.prefix)

    def matrix(self, name: str, rows: int, columns: int) -> Weight:
        """A matrix `[rows, columns]` of plain numbers or of blocks.

        Raises:
            WeightsError: it is missing or has another shape.
            UnsupportedModelError: it is stored in a way that products cannot read.
        """
        return self._declare(name, (rows, columns), allows_blocks=True)

    def vector(self, name: str, size: int) -> Weight:
        """A vector `[size]` of plain numbers.

        Raises:
            WeightsError: it is missing or has another shape.
            UnsupportedModelError: its numbers are not float32, float16 or bfloat16.
        """
        return self._declare(name, (size,), allows_blocks=False)

    def formats(self) -> tuple[tuple[str, str], ...]:
        """Names below the prefix with their storage formats, sorted: equal for layers that can share a subgraph."""
        found = (name for name in self.weights if name.startswith(self.prefix))
        return tuple(sorted((name[len(self.prefix) :], self.weights[name].format) for name in found))

    def _declare(self, name: str, shape: tuple[int, ...], *, allows_blocks: bool) -> Weight:
        full = self.prefix + name
        data = self.weights.get(full)
        if data is None:
            raise WeightsError("is missing from the checkpoint", file=self._checkpoint(), tensor=full)
        file = data.source.path if data.source is not None else None
        if tuple(data.shape) != shape:
            message = f"has shape {list(data.shape)}, the model needs {list(shape)}"
            raise WeightsError(message, file=file, tensor=data.name)
        encoding = data.quantization_encoding
        if encoding is None:
            if data.dtype not in _PLAIN_TYPES:
                supported = ", ".join(map(str, _PLAIN_TYPES))
                raise UnsupportedModelError(f"dtype of {data.name}", str(data.dtype), file=file, supported=supported)
        elif not (allows_blocks and encoding.is_gguf):
            raise UnsupportedModelError(f"encoding of {data.name}", str(encoding), file=file)
        return Weight(full.removeprefix(self.base), data.dtype, shape, quantization_encoding=encoding)

    def _checkpoint(self) -> Path | None:
        """The file that the weights come from; of several files their directory."""
        files = {data.source.path for data in self.weights.values() if data.source is not None}
        return min(files) if len(files) < 2 and files else min((file.parent for file in files), default=None)
