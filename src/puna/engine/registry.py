"""Binding weights to a graph: every weight is there, is what the graph declares, and nothing is left over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import numpy as np

from puna.errors import WeightsError
from puna.graph import Graph, Weight
from puna.graph.weights.weight_data import WeightData

__all__ = ["WeightSource", "bind_weights"]

WeightSource: TypeAlias = WeightData | np.ndarray[Any, Any]
"""What a weights registry may hold under a name."""

_MAX_NAMES: Final = 5


def bind_weights(graph: Graph, registry: Mapping[str, WeightSource]) -> dict[str, WeightData]:
    """The weights of a graph by full name, checked.

    A registry may hold, beyond the graph's weights, only names that the graph declares with `ignore_weights`. For a
    decoder these are facts that the graph has in another form (`rope_freqs.weight`, the factor tensors, the inverse
    frequencies of old checkpoints) and, with a tied embedding, `lm_head.weight`.

    Raises:
        WeightsError: a weight is missing, is left over, or has another shape, type or encoding than declared.
    """
    declared = graph.weights
    missing = [name for name in declared if name not in registry]
    if missing:
        raise WeightsError(f"the checkpoint lacks {_listing(missing)}", tensor=missing[0])
    unexpected = sorted(name for name in registry if name not in declared and name not in graph.unused_weights)
    if unexpected:
        raise WeightsError(f"the model has no use for {_listing(unexpected)}", tensor=unexpected[0])
    return {name: _checked(name, weight, registry[name]) for name, weight in declared.items()}


def _checked(name: str, weight: Weight, source: WeightSource) -> WeightData:
    data = source if isinstance(source, WeightData) else WeightData.from_numpy(np.asarray(source), name)
    for what, got, expected in (
        ("shape", list(data.shape), list(weight.shape)),
        ("dtype", str(data.dtype), str(weight.dtype)),
        ("encoding", str(data.quantization_encoding), str(weight.quantization_encoding)),
    ):
        if got != expected:
            raise WeightsError(f"has {what} {got}, the graph declares {expected}", tensor=name)
    return data


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{', '.join(names[:_MAX_NAMES])}{more}"
