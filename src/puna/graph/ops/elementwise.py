"""Operations on one element at a time: sums, factors, limits, and the gate of the MLP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

import numpy as np

from puna.errors import ShapeError
from puna.graph.ops.op import Array, EvaluationContext, Op, check_float_rows
from puna.graph.type import TensorType, describe
from puna.graph.value import Value

__all__ = [
    "GLU",
    "Activation",
    "Add",
    "Clamp",
    "Divide",
    "Scale",
    "Softcap",
    "add",
    "clamp",
    "divide",
    "glu",
    "scale",
    "softcap",
]


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
class Softcap(Op):
    """`cap * tanh(x / cap)` (Bello et al. 2016)."""

    cap: float
    opcode: ClassVar[str] = "softcap"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.cap) and self.cap > 0):
            raise ValueError(f"the cap of softcap must be positive, got {self.cap}")

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        check_float_rows("the operand of softcap", inputs[0])
        return (inputs[0],)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        cap = np.float32(self.cap)
        return (cap * np.tanh(inputs[0] / cap),)


Activation: TypeAlias = Literal["silu", "gelu_tanh"]
"""`x / (1 + exp(-x))`, or `x / (1 + exp(-2 * sqrt(2 / pi) * (x + 0.044715 * x^3)))`, GELU's approximation by tanh."""


@dataclass(frozen=True)
class GLU(Op):
    """`activation(gate) * up` (Shazeer 2020)."""

    activation: Activation = "silu"
    opcode: ClassVar[str] = "glu"

    def __post_init__(self) -> None:
        if self.activation not in get_args(Activation):
            raise ValueError(f"activation must be one of {', '.join(get_args(Activation))}, got {self.activation!r}")

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        _check_pair(self.opcode, inputs)
        return (inputs[0],)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        gate, up = inputs
        x = gate
        with np.errstate(over="ignore"):  # exp(-x) may be infinite: the quotient is then 0, as it should be
            if self.activation == "gelu_tanh":
                x = gate * (gate * gate * np.float32(0.044715) + np.float32(1)) * np.float32(math.sqrt(8 / math.pi))
            return (gate / (np.float32(1) + np.exp(-x)) * up,)


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


def softcap(x: Value, cap: float) -> Value:
    """Every element bent into the range from `-cap` to `cap`."""
    return x.graph.add(Softcap(cap), x)[0]


def glu(gate: Value, up: Value, activation: Activation = "silu") -> Value:
    """The gated activation of the MLP: `activation(gate) * up`."""
    return gate.graph.add(GLU(activation), gate, up)[0]
