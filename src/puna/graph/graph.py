"""`Graph`: what to compute, as a list of operations. Built once, then loaded by an `InferenceSession`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import ClassVar

from puna.errors import DTypeError, ShapeError
from puna.graph.ops.op import Array, EvaluationContext, Op
from puna.graph.type import TensorType
from puna.graph.value import Value, Weight

__all__ = ["Call", "Graph", "Node"]


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operation with its operands and results."""

    op: Op
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


class Graph:
    """A computation from inputs and weights to outputs, in the order in which it was written down.

    Operations are functions of `puna.graph.ops`; each adds a node to the graph of its operands. Order matters only for
    operations with an effect (`kv_store`).

    ```python
    with Graph("double", [TensorType(DType.float32, ("rows", 8))]) as graph:
        graph.output(ops.add(graph.inputs[0], graph.inputs[0]))
    ```

    Args:
        name: For listings, traces and errors.
        input_types: Types of the inputs, in the order in which they are given at run time.
        input_names: Names of the inputs; by default `input0`, `input1`, …
        num_optional_inputs: How many of the last inputs may be left out at run time.

    Raises:
        ValueError: names that are not unique or not as many as types.
    """

    def __init__(
        self,
        name: str,
        input_types: Sequence[TensorType],
        *,
        input_names: Sequence[str] | None = None,
        num_optional_inputs: int = 0,
    ) -> None:
        names = list(input_names) if input_names is not None else [f"input{i}" for i in range(len(input_types))]
        if len(names) != len(input_types) or len(set(names)) != len(names):
            raise ValueError(f"graph {name!r}: {len(input_types)} inputs need as many different names, got {names}")
        if not 0 <= num_optional_inputs <= len(names):
            raise ValueError(f"graph {name!r}: {num_optional_inputs} optional inputs of {len(names)}")
        self.name = name
        self.inputs = tuple(Value(self, type_, label) for type_, label in zip(input_types, names, strict=True))
        self.num_optional_inputs = num_optional_inputs
        self._nodes: list[Node] = []
        self._weights: dict[str, Weight] = {}
        self._outputs: tuple[Value, ...] | None = None
        self._output_names: tuple[str, ...] = ()
        self._unused_weights: set[str] = set()

    def __enter__(self) -> Graph:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._outputs is None:
            raise ValueError(f"graph {self.name!r} has no outputs: call output() before its block ends")

    def __repr__(self) -> str:
        return f"Graph({self.name!r}, {len(self.inputs)} inputs, {len(self._nodes)} nodes)"

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The operations in order."""
        return tuple(self._nodes)

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The results.

        Raises:
            ValueError: `output` was not called yet.
        """
        if self._outputs is None:
            raise ValueError(f"graph {self.name!r} has no outputs yet")
        return self._outputs

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the results, as many as there are outputs."""
        return self._output_names

    @property
    def weights(self) -> dict[str, Weight]:
        """Every weight by its full name (in subgraph calls: with the prefix of the call), in order of first use."""
        return dict(self._weights)

    @property
    def unused_weights(self) -> frozenset[str]:
        """Names that a weights registry may hold although the graph has no use for them."""
        return frozenset(self._unused_weights)

    def ignore_weights(self, names: Iterable[str]) -> None:
        """Declare that a registry may hold these names although the graph has no use for them."""
        self._unused_weights.update(names)

    def add(self, op: Op, *inputs: Value) -> tuple[Value, ...]:
        """Append an operation and return its results.

        Raises:
            ValueError: an operand belongs to another graph, or a weight's name already stands for another weight.
            ShapeError: an operand has a shape that the operation does not take.
            DTypeError: an operand has an element type that it does not take.
        """
        for value in inputs:
            if value.graph is not self:
                raise ValueError(f"{op.opcode}: {value.name!r} belongs to {value.graph!r}, not to {self!r}")
        types = op.infer([value.type for value in inputs])
        for weight in op.weights:
            if self._weights.setdefault(weight.name, weight) != weight:
                declared = self._weights[weight.name]
                raise ValueError(f"{op.opcode}: weight {weight.name!r} is declared as {declared} and as {weight}")
        base = f"{op.opcode}_{len(self._nodes)}"
        names = [base] if len(types) == 1 else [f"{base}_{position}" for position in range(len(types))]
        outputs = tuple(Value(self, type_, name) for type_, name in zip(types, names, strict=True))
        self._nodes.append(Node(op, inputs, outputs))
        return outputs

    def call(self, subgraph: Graph, *inputs: Value, prefix: str = "", layer: int = 0) -> tuple[Value, ...]:
        """Append a call of another graph.

        Args:
            subgraph: The graph to run; its inputs' names of sizes are this graph's.
            inputs: Its inputs; optional ones may be left out.
            prefix: Put before the names of its weights.
            layer: Added to the layer numbers of its cache operations.

        Raises:
            ValueError: a graph that calls itself, or an operand of another graph.
            ShapeError: other inputs than the subgraph's.
            DTypeError: an operand has another element type than the subgraph's input.
        """
        if subgraph is self:
            raise ValueError(f"graph {self.name!r} cannot call itself")
        return self.add(Call(subgraph, prefix, layer), *inputs)

    def output(self, *values: Value, names: Sequence[str] | None = None) -> None:
        """Declare the results, once.

        Raises:
            ValueError: a second call, a value of another graph, or names that are not as many as values.
        """
        if self._outputs is not None:
            raise ValueError(f"graph {self.name!r} already has outputs")
        for value in values:
            if value.graph is not self:
                raise ValueError(f"output {value.name!r} belongs to {value.graph!r}, not to {self!r}")
        labels = tuple(names) if names is not None else tuple(f"output{i}" for i in range(len(values)))
        if len(labels) != len(values):
            raise ValueError(f"graph {self.name!r}: {len(values)} outputs need as many names, got {labels}")
        self._outputs = tuple(values)
        self._output_names = labels

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> list[Array]:
        """Run the NumPy twins of all operations. Missing optional inputs are left out at the end."""
        values: dict[Value, Array] = dict(zip(self.inputs, inputs, strict=False))
        missing = set(self.inputs[len(inputs) :])
        for node in self._nodes:
            operands = [values[value] for value in node.inputs if value not in missing]
            values.update(zip(node.outputs, node.op.evaluate(operands, context), strict=True))
        return [values[value] for value in self.outputs]


@dataclass(frozen=True)
class Call(Op):
    """A subgraph, run with the weights of one prefix and the cache of one layer."""

    subgraph: Graph
    prefix: str
    layer: int
    opcode: ClassVar[str] = "call"

    @property
    def weights(self) -> tuple[Weight, ...]:
        found = self.subgraph.weights.values()
        return tuple(replace(weight, name=self.prefix + weight.name) for weight in found)

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        declared = self.subgraph.inputs
        if not len(declared) - self.subgraph.num_optional_inputs <= len(inputs) <= len(declared):
            raise ShapeError(f"a call of {self.subgraph.name!r}", f"{len(inputs)} inputs", f"{len(declared)} inputs")
        for value, given in zip(declared, inputs, strict=False):
            if value.dtype is not given.dtype:
                raise DTypeError(f"{value.name!r} in a call of {self.subgraph.name!r}", given.dtype, value.dtype)
            if value.shape != given.shape:
                raise ShapeError(f"{value.name!r} in a call of {self.subgraph.name!r}", given, value.type)
        return tuple(value.type for value in self.subgraph.outputs)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        return tuple(self.subgraph.evaluate(inputs, context.scoped(self.prefix, self.layer)))
