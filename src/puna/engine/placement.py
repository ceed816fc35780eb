"""Where the values of a graph are while it is lowered: their buffer, their columns, how long they are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from puna.engine.instructions import BufferKind, Function, RowClass, VirtualBuffer
from puna.errors import UnsupportedModelError
from puna.graph import BATCH_SIZE, LOGIT_ROWS, TOTAL_SEQ_LEN, Graph, Node, TensorType, Value

if TYPE_CHECKING:
    from puna.graph.type import Dim

__all__ = ["LoweredSubgraph", "Place", "Placement", "unsupported"]

_ROW_CLASSES: Final[Mapping[Dim, RowClass]] = {TOTAL_SEQ_LEN: "T", BATCH_SIZE: "B", LOGIT_ROWS: "R"}


class Place(NamedTuple):
    """A value's columns in a buffer."""

    buffer: VirtualBuffer
    col: int = 0


@dataclass(frozen=True)
class LoweredSubgraph:
    """A function that every call of a subgraph runs.

    Attributes:
        function: Its instructions.
        parameters: Where its inputs must be: a place, or the name of an input of the whole program.
        results: Where its outputs are afterwards.
        partners: What each of its weight matrices is multiplied with.
    """

    function: Function
    parameters: tuple[Place | str, ...]
    results: tuple[Place, ...]
    partners: Mapping[str, str]


def unsupported(graph: Graph, what: str, found: str, supported: str | None = None) -> UnsupportedModelError:
    """The error for a graph that no program can run."""
    return UnsupportedModelError(f"{what} in graph {graph.name!r}", found, supported=supported)


class Placement:
    """Places of values, and the bookkeeping that says when a place may be reused."""

    def __init__(self, graph: Graph, emit_copy: Callable[[Place, Place, int], None]) -> None:
        self.graph = graph
        self._emit_copy = emit_copy
        self._places: dict[Value, Place] = {}
        self._residents: dict[VirtualBuffer, set[Value]] = {}
        self.uses_left: dict[Value, int] = {}
        self.consumers: dict[Value, list[Node]] = {}
        self.producer: dict[Value, Node] = {}
        for node in graph.nodes:
            for value in node.inputs:
                self.uses_left[value] = self.uses_left.get(value, 0) + 1
                self.consumers.setdefault(value, []).append(node)
            self.producer.update((value, node) for value in node.outputs)
        for value in graph.outputs:
            self.uses_left[value] = self.uses_left.get(value, 0) + 1

    def new_buffer(self, type_: TensorType, width: int, name: str, kind: BufferKind = "f32") -> VirtualBuffer:
        """A buffer with as many rows as the type has."""
        rows = _ROW_CLASSES.get(type_.shape[0]) if type_.rank == 2 and not isinstance(type_.shape[0], int) else None
        if rows is None:
            names = ", ".join(map(str, _ROW_CLASSES))
            raise unsupported(self.graph, f"the shape of {name}", str(type_), supported=f"rows named {names}")
        return VirtualBuffer(rows, width, kind, name)

    def define(self, value: Value, place: Place) -> None:
        """Say where a value is."""
        self._places[value] = place
        self._residents.setdefault(place.buffer, set()).add(value)

    def retire(self, *nodes: Node) -> None:
        """Note that these nodes have read their operands."""
        for node in nodes:
            for value in node.inputs:
                self.uses_left[value] -= 1

    def place(self, value: Value) -> Place:
        """Where a value is."""
        found = self._places.get(value)
        if found is None:
            raise unsupported(
                self.graph, f"the operand {value.name}", str(value.type), "values that operations computed"
            )
        return found

    def dense(self, value: Value) -> VirtualBuffer:
        """A buffer whose first columns are the value; a copy where it lies further right."""
        place = self.place(value)
        if place.col == 0:
            return place.buffer
        self.move(value, self.new_buffer(value.type, value.type.width, value.name))
        return self.place(value).buffer

    def move(self, value: Value, buffer: VirtualBuffer) -> None:
        """Copy a value to the first columns of another buffer, which is its place from now on."""
        source = self.place(value)
        self._residents[source.buffer].discard(value)
        self._emit_copy(source, Place(buffer), value.type.width)
        self.define(value, Place(buffer))

    def live_values(self, buffer: VirtualBuffer) -> list[Value]:
        """Values in a buffer that are still needed, in a fixed order."""
        residents = self._residents.get(buffer, set())
        return sorted((v for v in residents if self.uses_left.get(v, 0) > 0), key=lambda v: v.name)

    def is_free(self, place: Place, width: int) -> bool:
        """Whether nobody needs what lies in these columns."""
        for value in self.live_values(place.buffer):
            col = self.place(value).col
            if col < place.col + width and place.col < col + value.type.width:
                return False
        return True

    def is_overwritable(self, buffer: VirtualBuffer, width: int) -> bool:
        """Whether a result of this width may replace everything in the buffer."""
        return buffer.width == width and self.is_free(Place(buffer), width)

    def sole_consumer(self, value: Value) -> Node | None:
        """The one node that reads a value, if there is exactly one and the value is no output."""
        consumers = self.consumers.get(value, [])
        return consumers[0] if len(consumers) == 1 and value not in self.graph.outputs else None
