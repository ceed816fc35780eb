"""`AdapterModule`: what a file says about one module, in the file's own layout."""

from __future__ import annotations

from dataclasses import dataclass

from puna.graph.weights import WeightData, WeightsFormat

__all__ = ["AdapterModule"]


@dataclass(frozen=True, slots=True)
class AdapterModule:
    """A module that an adapter updates.

    Attributes:
        name: Its name in a checkpoint of that kind.
        kind: The kind of checkpoint whose names and rows these are.
        a: `[rank, inputs]`; of an embedding `[rank, vocabulary]`.
        b: `[outputs, rank]`.
        scale: The factor on B A.
        is_embedding: Whether it is a look-up by token.
    """

    name: str
    kind: WeightsFormat
    a: WeightData
    b: WeightData
    scale: float
    is_embedding: bool = False
