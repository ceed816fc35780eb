"""Operations on one element at a time: sums, factors, limits, and the gate of the MLP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from puna.errors import ShapeError
from puna.graph.ops.op import Array, EvaluationContext, Op, check_float_rows
from puna.graph.type import TensorType, describe
from puna.graph.value import Value

__all__ = ["Add", "Clamp", "Divide", "Scale", "SwiGLU", "add", "clamp", "divide", "scale", "swiglu"]


def _check_pair(what: str, inputs: Sequence[TensorType]) -> None:
    first, second = inputs
    check_float_rows(f"the first operand of {what}", first)
    check_float_rows(f"the second operand of {what}", second)
    if first.shape != second.shape:
        raise ShapeError(f"the second operand of {what}", describe(second.shape), describe(first.shape))


@dataclass(frozen=True)
class Add(Op):
    """`a + b`."""

    opcode: ClassVar[str] = "add"

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        _check_pair(self.opcode, inputs)
        return (inputs[0],)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        return (inputs[0] + inputs[1],)


@dataclass(frozen=True)
class Scale(Op):
    """`x * multiplier`, the multiplier rounded to float32."""

    multiplier: float
    opcode: ClassVar[str] = "scale"

    def __post_init__(self) -> None:
        if not math.isfinite(self.multiplier):
            raise ValueError(f"the multiplier of scale must be finite, got {self.multiplier}")

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        check_float_rows("the operand of scale", inputs[0])
        return (inputs[0],)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        return (inputs[0] * np.float32(self.multiplier),)


@dataclass(frozen=True)
class Divide(Op):
    """`x / divisor`, a true division by the divisor rounded to float32."""

    divisor: float
    opcode: ClassVar[str] = "divide"

    def __post_init__(self) -> None:
        if not math.isfinite(self.divisor) or self.divisor == 0:
            raise ValueError(f"the divisor of divide must be finite and not zero, got {self.divisor}")

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        check_float_rows("the operand of divide", inputs[0])
        return (inputs[0],)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        return (inputs[0] / np.float32(self.divisor),)


@dataclass(frozen=True)
class Clamp(Op):
    """`min(max(x, -limit), limit)`."""

    limit: float
    opcode: ClassVar[str] = "clamp"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise ValueError(f"the limit of clamp must be positive, got {self.limit}")

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        check_float_rows("the operand of clamp", inputs[0])
        return (inputs[0],)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        limit = np.float32(self.limit)
        return (np.clip(inputs[0], -limit, limit),)


@dataclass(frozen=True)
class SwiGLU(Op):
    """`gate / (1 + exp(-gate)) * up` (Shazeer 2020)."""

    opcode: ClassVar[str] = "swiglu"

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        _check_pair(self.opcode, inputs)
        return (inputs[0],)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        gate, up = inputs
        with np.errstate(over="ignore"):  # exp(-gate) may be infinite: the quotient is then 0, as it should be
            return (gate / (np.float32(1) + np.exp(-gate)) * up,)


def add(a: Value, b: Value) -> Value:
    """The sum of two values of equal shape."""
    return a.graph.add(Add(), a, b)[0]


def scale(x: Value, multiplier: float) -> Value:
    """Every element times a number."""
    return x.graph.add(Scale(multiplier), x)[0]


def divide(x: Value, divisor: float) -> Value:
    """Every element divided by a number."""
    return x.graph.add(Divide(divisor), x)[0]


def clamp(x: Value, limit: float) -> Value:
    """Every element limited to the range from `-limit` to `limit`."""
    return x.graph.add(Clamp(limit), x)[0]


def swiglu(gate: Value, up: Value) -> Value:
    """The gated activation of the MLP: `silu(gate) * up`."""
    return gate.graph.add(SwiGLU(), gate, up)[0]
