"""Products with a weight matrix."""

from __future__ import annotations

from dataclasses import dataclass

from puna.graph import Value, Weight, ops
from puna.nn.declarations import WeightDeclarations

__all__ = ["Linear"]


@dataclass(frozen=True)
class Linear:
    """`x @ weight.T + bias`.

    Attributes:
        weight: `[out_features, in_features]`.
        bias: `[out_features]` or None.
        two_terms: Activations that are rounded to 8 bits for this product are taken in two terms, which leave an
            error of about 15 bits, for twice the arithmetic; those that are rounded to bfloat16 are not rounded.
    """

    weight: Weight
    bias: Weight | None = None
    two_terms: bool = False

    @classmethod
    def declare(
        cls, weights: WeightDeclarations, name: str, out_features: int, in_features: int, *, has_bias: bool = False
    ) -> Linear:
        """The module for `name.weight` and, where there is one, `name.bias`."""
        bias = weights.vector(f"{name}.bias", out_features) if has_bias else None
        return cls(weights.matrix(f"{name}.weight", out_features, in_features), bias)

    def __call__(self, x: Value) -> Value:
        """Append the product: `[rows, in_features]` to `[rows, out_features]`."""
        return ops.matmul(x, self.weight, self.bias, two_terms=self.two_terms)
