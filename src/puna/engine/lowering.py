"""From a graph to instructions: every node becomes one, part of one, or nothing at all.

With fusion, neighbours become one instruction: norm or glu with the rounding of their result to 8 bits, products of
one operand side by side, a clamp or a residual sum with the product before it, a product with the copy of its result to
the caller, the embedding with its factor. Without it, each of these is an instruction of its own; the results have the
same bits. Some merging is no choice: slices and concatenated products are places in a wider buffer, and rotation plus
store is one instruction.

In-place work is safe by counting: a buffer may be overwritten only when no value in it has a use left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from puna.engine.function_lowering import FunctionLowering
from puna.engine.instructions import Function, LoweredProgram
from puna.engine.placement import LoweredSubgraph, Place, unsupported
from puna.graph import Graph, Value

__all__ = ["Partner", "lower"]

Partner: TypeAlias = Literal["a8", "f32"]


class _ProgramLowering:
    """What the functions of one program share: the subgraphs that are lowered already."""

    def __init__(self, partner: Callable[[str], str], fuse: bool) -> None:
        self.partner = partner
        self.fuse = fuse
        self.subgraphs: dict[Graph, LoweredSubgraph] = {}

    def subgraph(self, graph: Graph, prefix: str, places: Sequence[Place | str]) -> LoweredSubgraph:
        """The function for a subgraph: made for the operands of its first call, then shared by later ones."""
        known = self.subgraphs.get(graph)
        if known is not None:
            partners = {name: self.partner(prefix + name) for name in known.partners}
            if partners != known.partners:
                raise unsupported(graph, "call", f"weights of {prefix!r} in formats other than the first call's")
            return known
        function = Function(graph.name)
        inputs = dict(zip(graph.inputs, places, strict=True))
        partners = {w.name: self.partner(prefix + w.name) for w in graph.weights.values() if len(w.shape) == 2}
        lowering = FunctionLowering(
            graph, function, partner=partners.__getitem__, fuse=self.fuse, inputs=inputs, subgraph=None
        )
        lowering.run()
        results = tuple(lowering.result_place(value) for value in graph.outputs)
        lowered = LoweredSubgraph(function, tuple(places), results, partners)
        self.subgraphs[graph] = lowered
        return lowered


def lower(graph: Graph, partner: Callable[[str], str], *, fuse: bool = True) -> LoweredProgram:
    """The instructions of a graph.

    Args:
        graph: What to compute; its inputs have the names of the program's.
        partner: For a weight matrix by its full name: `"a8"` if products with it take 8-bit activations, else `"f32"`.
        fuse: Whether neighbours become one instruction where that is a choice.

    Raises:
        UnsupportedModelError: the graph does something that the program has no instruction for.
    """
    shared = _ProgramLowering(partner, fuse)
    main = Function(graph.name)
    inputs: dict[Value, Place | str] = {value: value.name for value in graph.inputs}
    FunctionLowering(graph, main, partner=partner, fuse=fuse, inputs=inputs, subgraph=shared.subgraph).run()
    return LoweredProgram(main, tuple(lowered.function for lowered in shared.subgraphs.values()))
