"""Normalization layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from puna.graph import Value, Weight, ops

__all__ = ["LayerNorm", "Norm", "RMSNorm"]


@dataclass(frozen=True)
class RMSNorm:
    """`x / sqrt(mean(x^2) + eps) * weight`; the weight is applied after normalization and has no offset.

    Attributes:
        weight: `[columns]`, or None.
        eps: Added to the mean square.
    """

    weight: Weight | None
    eps: float

    def __call__(self, x: Value) -> Value:
        """Append the normalization of each row."""
        return ops.rms_norm(x, self.weight, self.eps)


@dataclass(frozen=True)
class LayerNorm:
    """`(x - mean) / sqrt(var + eps) * weight + bias`.

    Attributes:
        weight: `[columns]`, or None.
        bias: `[columns]`, or None.
        eps: Added to the variance.
    """

    weight: Weight | None
    bias: Weight | None
    eps: float

    def __call__(self, x: Value) -> Value:
        """Append the normalization of each row."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


Norm: TypeAlias = RMSNorm | LayerNorm
