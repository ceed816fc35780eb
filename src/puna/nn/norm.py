"""Normalization layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from puna.graph import Value, Weight, ops
from puna.nn.declarations import WeightDeclarations

if TYPE_CHECKING:
    from puna.nn.decoder_spec import DecoderSpec

__all__ = ["HeadNorm", "LayerNorm", "Norm", "RMSNorm", "declare_norm"]


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


@dataclass(frozen=True)
class HeadNorm:
    """`RMSNorm` of each of the equal parts of a row that the weight is as wide as.

    Attributes:
        weight: `[part]`.
        eps: Added to the mean square.
    """

    weight: Weight
    eps: float

    def __call__(self, x: Value) -> Value:
        """Append the normalization."""
        return ops.head_norm(x, self.weight, self.eps)


Norm: TypeAlias = RMSNorm | LayerNorm


def declare_norm(spec: DecoderSpec, weights: WeightDeclarations, name: str) -> Norm:
    """The norm that the decoder uses, with the weights that it has."""
    is_rms = spec.norm_method == "rms_norm"
    has_weight = is_rms if spec.norm_has_weight is None else spec.norm_has_weight
    weight = weights.vector(f"{name}.weight", spec.hidden_size) if has_weight else None
    if is_rms:
        return RMSNorm(weight, spec.norm_eps)
    bias = weights.vector(f"{name}.bias", spec.hidden_size) if spec.norm_has_bias else None
    return LayerNorm(weight, bias, spec.norm_eps)
