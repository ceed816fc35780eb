"""The table of token embeddings."""

from __future__ import annotations

from dataclasses import dataclass

from puna.graph import Value, Weight, ops
from puna.graph.ops import AdapterValues
from puna.nn.declarations import WeightDeclarations

__all__ = ["Embedding"]


@dataclass(frozen=True)
class Embedding:
    """`weight[tokens] * multiplier`.

    Attributes:
        weight: `[vocab_size, hidden_size]`.
        multiplier: Factor on the looked-up rows; it does not touch an output matrix that shares the weight.
    """

    weight: Weight
    multiplier: float = 1.0

    @classmethod
    def declare(
        cls, weights: WeightDeclarations, name: str, vocab_size: int, hidden_size: int, multiplier: float = 1.0
    ) -> Embedding:
        """The module for `name.weight`."""
        return cls(weights.matrix(f"{name}.weight", vocab_size, hidden_size), multiplier)

    def __call__(self, tokens: Value, adapters: AdapterValues | None = None) -> Value:
        """Append the look-up: int64 `[tokens]` to float32 `[tokens, hidden_size]`."""
        rows = ops.embedding(tokens, self.weight)
        if adapters is not None:
            rows = ops.lora_embedding(tokens, rows, adapters)
        return rows if self.multiplier == 1 else ops.scale(rows, self.multiplier)
