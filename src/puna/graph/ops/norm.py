"""Normalization of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from puna.errors import ShapeError
from puna.graph.ops.op import Array, EvaluationContext, Op, check_float_rows
from puna.graph.type import TensorType, describe
from puna.graph.value import Value, Weight

__all__ = ["HeadNorm", "LayerNorm", "RMSNorm", "head_norm", "layer_norm", "rms_norm"]


def _check_norm(op: str, x: TensorType, eps: float, weights: Sequence[Weight]) -> None:
    check_float_rows(f"the operand of {op}", x)
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"the epsilon of {op} must be a number of 0 or more, got {eps}")
    for weight in weights:
        if weight.shape != (x.width,):
            raise ShapeError(f"weight {weight.name!r} of {op}", describe(weight.shape), f"[{x.width}]")


def _rms_normalized(x: Array, eps: float) -> Array:
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    return x * (np.float32(1) / np.sqrt(mean_square + np.float32(eps)))


@dataclass(frozen=True)
class RMSNorm(Op):
    """`x / sqrt(mean(x^2) + eps) * weight` (Zhang and Sennrich 2019)."""

    weight: Weight | None
    eps: float
    opcode: ClassVar[str] = "rms_norm"

    @property
    def weights(self) -> tuple[Weight, ...]:
        return () if self.weight is None else (self.weight,)

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        _check_norm(self.opcode, inputs[0], self.eps, self.weights)
        return (inputs[0],)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        normalized = _rms_normalized(inputs[0], self.eps)
        return (normalized if self.weight is None else normalized * context.weight(self.weight),)


@dataclass(frozen=True)
class HeadNorm(Op):
    """`RMSNorm` of each part of a row, parts as wide as the weight (queries and keys by head: Dehghani et al. 2023)."""

    weight: Weight
    eps: float
    opcode: ClassVar[str] = "head_norm"

    @property
    def weights(self) -> tuple[Weight, ...]:
        return (self.weight,)

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        (x,), shape = inputs, self.weight.shape
        _check_norm(self.opcode, x, self.eps, ())
        if len(shape) != 1 or x.width % shape[0]:
            raise ShapeError(f"weight {self.weight.name!r} of head_norm", describe(shape), f"a divisor of {x.width}")
        return (x,)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        (x,), weight = inputs, context.weight(self.weight)
        parts = x.reshape(x.shape[0], x.shape[1] // weight.size, weight.size)
        return ((_rms_normalized(parts, self.eps) * weight).reshape(x.shape),)


@dataclass(frozen=True)
class LayerNorm(Op):
    """`(x - mean) / sqrt(var + eps) * weight + bias`, weight and bias where there are any (Ba et al. 2016)."""

    weight: Weight | None
    bias: Weight | None
    eps: float
    opcode: ClassVar[str] = "layer_norm"

    @property
    def weights(self) -> tuple[Weight, ...]:
        return tuple(weight for weight in (self.weight, self.bias) if weight is not None)

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        _check_norm(self.opcode, inputs[0], self.eps, self.weights)
        return (inputs[0],)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        centred = inputs[0] - np.mean(inputs[0], axis=-1, keepdims=True, dtype=np.float32)
        variance = np.mean(np.square(centred), axis=-1, keepdims=True, dtype=np.float32)
        result = centred * (np.float32(1) / np.sqrt(variance + np.float32(self.eps)))
        if self.weight is not None:
            result = result * context.weight(self.weight)
        if self.bias is not None:
            result = result + context.weight(self.bias)
        return (result,)


def rms_norm(x: Value, weight: Weight | None, eps: float) -> Value:
    """Rows divided by their root mean square, times a weight `[columns]` if there is one."""
    return x.graph.add(RMSNorm(weight, eps), x)[0]


def head_norm(x: Value, weight: Weight, eps: float) -> Value:
    """The parts of a row that are as wide as the weight, each divided by its root mean square, times the weight."""
    return x.graph.add(HeadNorm(weight, eps), x)[0]


def layer_norm(x: Value, weight: Weight | None, bias: Weight | None, eps: float) -> Value:
    """Rows with mean 0 and variance 1, times a weight and plus a bias `[columns]` where there are any."""
    return x.graph.add(LayerNorm(weight, bias, eps), x)[0]
