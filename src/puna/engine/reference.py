"""The reference executor: a graph run with the NumPy twins of its operations. Slow, and independent of the kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import numpy as np

from puna.engine.adapters import AdapterKey, AdapterSlots
from puna.engine.step_check import check_step
from puna.graph import Graph, Weight
from puna.graph.ops.linear import Embedding
from puna.graph.ops.lora import MODEL_TARGETS
from puna.graph.ops.op import Float32Array, Rounding
from puna.graph.weights.weight_data import WeightData

__all__ = ["CODE_FORMATS", "Observer", "ReferenceExecutor"]

CODE_FORMATS: Final = frozenset(
    {
        *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"),
    }
)
"""Formats whose products take activations rounded to 8 bits, unless float32 precision is asked for."""

Observer: TypeAlias = Callable[[str, Float32Array], None]
"""Told the name of a weight and what it is multiplied by."""

_KEPT_BYTES: Final = 1 << 30
"""Up to this size all weights stay in float32 once they were used; beyond it one at a time does."""


@dataclass(frozen=True)
class _Context:
    """What the twins see: weights as float32, by the prefix and the layer of the running call."""

    weights: Mapping[str, WeightData]
    is_exact: bool
    keeps: bool
    values: dict[str, Float32Array] = field(default_factory=dict)
    adapters: AdapterSlots | None = None
    observer: Observer | None = None
    prefix: str = ""
    layer: int = 0

    def weight(self, weight: Weight) -> Float32Array:
        name = self.prefix + weight.name
        if not self.keeps:
            return self.weights[name].to_float32()
        if name not in self.values:
            self.values[name] = self.weights[name].to_float32()
        return self.values[name]

    def rounding(self, weight: Weight) -> Rounding:
        format = self.weights[self.prefix + weight.name].format
        if self.is_exact:
            return "none"
        return "codes" if format in CODE_FORMATS else "bfloat16" if format == "BF16" else "none"

    def observe(self, weight: Weight, x: Float32Array) -> None:
        if self.observer is not None:
            self.observer(self.prefix + weight.name, x)

    def adapter(self, slot: int, layer: int, target: str) -> tuple[Float32Array, Float32Array, float] | None:
        found = None if self.adapters is None else self.adapters[slot]
        if found is None:
            raise ValueError(f"lora_ids: slot {slot} holds no adapter")
        return found.arrays(AdapterKey(layer if target in MODEL_TARGETS else self.layer + layer, target))

    def scoped(self, prefix: str, layer: int) -> _Context:
        return replace(self, prefix=self.prefix + prefix, layer=self.layer + layer)


class ReferenceExecutor:
    """Runs a graph operation by operation in float32.

    Args:
        graph: What to run.
        weights: Its weights by full name.
        is_exact: Products take float32 activations, whatever the weights, as `precision="float32"` means.
        adapters: The adapters that a step can name.
        observer: Told every product's weight, by name, and what it is multiplied by.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, WeightData],
        *,
        is_exact: bool,
        adapters: AdapterSlots | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.graph = graph
        size = sum(math.prod(weight.shape) for weight in weights.values()) * 4
        self._context = _Context(weights, is_exact, size <= _KEPT_BYTES, adapters=adapters, observer=observer)
        tables = [node.op.weight.shape[0] for node in graph.nodes if isinstance(node.op, Embedding)]
        self._vocab_size = min(tables, default=None)

    def derive(self, graph: Graph, adapters: AdapterSlots | None = None) -> ReferenceExecutor:
        """The executor of another graph over the same weights, or some of them."""
        context = self._context
        return ReferenceExecutor(
            graph, context.weights, is_exact=context.is_exact, adapters=adapters, observer=context.observer
        )

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]], outputs: list[np.ndarray[Any, Any]]) -> None:
        """Compute all outputs. `kv_blocks` is written in place.

        Raises:
            ValueError: an input's values are out of range; the message names it.
        """
        check_step(inputs, self._vocab_size)
        operands = [inputs[value.name] for value in self.graph.inputs if value.name in inputs]
        with np.errstate(under="ignore"):
            results = self.graph.evaluate(operands, self._context)
        for result, output in zip(results, outputs, strict=True):
            output[...] = result
