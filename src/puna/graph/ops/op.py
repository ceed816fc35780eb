"""What an operation is: one class that infers the type of its results and computes them in NumPy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from puna.dtype import DType
from puna.errors import DTypeError, ShapeError
from puna.graph.type import TensorType, describe
from puna.graph.value import Weight

__all__ = ["Array", "EvaluationContext", "Float32Array", "Op", "Rounding", "check_dtype", "check_float_rows"]

Array: TypeAlias = npt.NDArray[Any]
Float32Array: TypeAlias = npt.NDArray[np.float32]
Rounding: TypeAlias = Literal["none", "bfloat16", "codes"]


class EvaluationContext(Protocol):
    """What the NumPy twins need to know beyond their operands."""

    @property
    def layer(self) -> int:
        """Layer number of the running subgraph call; operations add their own to it."""

    def weight(self, weight: Weight) -> Float32Array:
        """The weight's values in its logical shape."""

    def rounding(self, weight: Weight) -> Rounding:
        """What products with this weight round the activations to: nothing, bfloat16, or codes of 8 bits."""

    def observe(self, weight: Weight, x: Float32Array) -> None:
        """Told what a product multiplies a weight by, before it is rounded."""

    def adapter(self, slot: int, layer: int, target: str) -> tuple[Float32Array, Float32Array, float] | None:
        """A, B and scale by which the adapter in a slot updates a product of a layer, or None."""

    def scoped(self, prefix: str, layer: int) -> EvaluationContext:
        """The context inside a subgraph call."""


class Op(ABC):
    """One operation: immutable attributes, type inference, and a second implementation in NumPy.

    The NumPy twin is written from the mathematics, not from the native kernel, in float32; it is what kernels are
    tested against and what `executor="reference"` runs.
    """

    opcode: ClassVar[str]
    """Name of the operation in listings, traces and errors."""

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The weights that the operation reads."""
        return ()

    @abstractmethod
    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """The types of the results.

        Raises:
            ShapeError: an operand's shape is not one that the operation takes.
            DTypeError: an operand's element type is not one that it takes.
        """

    @abstractmethod
    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        """The results as arrays."""


def check_dtype(what: str, got: TensorType, *expected: DType) -> None:
    """Raise `DTypeError` unless the operand has one of these element types."""
    if got.dtype not in expected:
        raise DTypeError(what, got.dtype, " or ".join(map(str, expected)))


def check_float_rows(what: str, got: TensorType, width: int | None = None) -> None:
    """Raise unless the operand is a float32 matrix, with `width` columns where that is given."""
    check_dtype(what, got, DType.float32)
    if got.rank != 2 or (width is not None and got.shape[1] != width):
        raise ShapeError(what, describe(got.shape), f"[rows, {'columns' if width is None else width}]")
    _ = got.width
