"""What operations take and give: values that flow through a graph, and weights that are bound when it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from puna.dtype import DType
from puna.errors import DTypeError
from puna.graph.device import DeviceRef
from puna.graph.quantization import QuantizationEncoding
from puna.graph.type import Shape, TensorType

if TYPE_CHECKING:
    from puna.graph.graph import Graph

__all__ = ["Value", "Weight"]


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """One result of an operation, or one input of a graph. Equal only to itself.

    Attributes:
        graph: The graph that it belongs to.
        type: Element type, shape and device.
        name: Unique within the graph.
    """

    graph: Graph = field(repr=False)
    type: TensorType
    name: str

    @property
    def shape(self) -> Shape:
        """Sizes, some of them names."""
        return self.type.shape

    @property
    def dtype(self) -> DType:
        """Type of the elements."""
        return self.type.dtype


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant array that a loaded graph gets from its weights registry by name.

    Attributes:
        name: Key in the registry; within a subgraph, what follows the prefix of the call.
        dtype: Storage type; `uint8` for block-quantized weights.
        shape: Logical shape, before any packing: `[outputs, inputs]` for a matrix.
        device: Where it lives.
        quantization_encoding: How blocks are stored; None for plain numbers.

    Raises:
        DTypeError: an encoding with a storage type other than `uint8`.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    device: DeviceRef = field(default_factory=DeviceRef.CPU)
    quantization_encoding: QuantizationEncoding | None = None

    def __post_init__(self) -> None:
        if self.quantization_encoding is not None and self.dtype is not DType.uint8:
            raise DTypeError(f"weight {self.name!r}", self.dtype, f"uint8 for {self.quantization_encoding.value}")
