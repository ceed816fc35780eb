"""Operations that choose rows or columns and compute nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from puna.dtype import DType
from puna.errors import ShapeError
from puna.graph.ops.op import Array, EvaluationContext, Op, check_dtype, check_float_rows
from puna.graph.type import LOGIT_ROWS, Dim, TensorType, describe
from puna.graph.value import Value

__all__ = [
    "ConcatColumns",
    "GatherLast",
    "GatherVariable",
    "SliceColumns",
    "VariableOffsets",
    "concat_columns",
    "gather_last",
    "gather_variable",
    "slice_columns",
    "variable_offsets",
]


def _check_offsets(offsets: TensorType) -> Dim:
    check_dtype("the row offsets", offsets, DType.uint32)
    size = offsets.shape[0] if offsets.rank == 1 else None
    if not isinstance(size, Dim):
        raise ShapeError("the row offsets", describe(offsets.shape), "[batch_size + 1]")
    return Dim(size.name, size.offset - 1)


def _check_count(count: TensorType) -> None:
    check_dtype("the number of rows per request", count, DType.int64)
    if count.shape != (1,):
        raise ShapeError("the number of rows per request", describe(count.shape), "[1]")


@dataclass(frozen=True)
class SliceColumns(Op):
    """`x[:, start:stop]`."""

    start: int
    stop: int
    opcode: ClassVar[str] = "slice_columns"

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        check_float_rows("the operand of slice_columns", inputs[0])
        if not 0 <= self.start < self.stop <= inputs[0].width:
            columns = f"columns up to {self.stop} (from {self.start})"
            raise ShapeError("the operand of slice_columns", describe(inputs[0].shape), columns)
        return (inputs[0].with_shape(inputs[0].shape[0], self.stop - self.start),)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        return (inputs[0][:, self.start : self.stop],)


@dataclass(frozen=True)
class ConcatColumns(Op):
    """Matrices of equal height side by side."""

    opcode: ClassVar[str] = "concat_columns"

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        if not inputs:
            raise ValueError("concat_columns needs at least one operand")
        for position, operand in enumerate(inputs):
            check_float_rows(f"operand {position} of concat_columns", operand)
            if operand.shape[0] != inputs[0].shape[0]:
                raise ShapeError(
                    f"operand {position} of concat_columns", describe(operand.shape), f"{inputs[0].shape[0]} rows"
                )
        return (inputs[0].with_shape(inputs[0].shape[0], sum(operand.width for operand in inputs)),)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        return (np.concatenate(inputs, axis=1),)


@dataclass(frozen=True)
class GatherLast(Op):
    """Row `offsets[b + 1] - 1` for each request b: its last row."""

    opcode: ClassVar[str] = "gather_last"

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, offsets = inputs
        check_float_rows("the operand of gather_last", x)
        return (x.with_shape(_check_offsets(offsets), x.width),)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        x, offsets = inputs
        return (x[offsets[1:].astype(np.int64) - 1],)


@dataclass(frozen=True)
class GatherVariable(Op):
    """The last n rows of each request in ascending order, n being the step's `return_n_logits`."""

    opcode: ClassVar[str] = "gather_variable"

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, offsets, count = inputs
        check_float_rows("the operand of gather_variable", x)
        _check_offsets(offsets)
        _check_count(count)
        return (x.with_shape(LOGIT_ROWS, x.width),)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        x, offsets, count = inputs
        n = int(count[0])
        rows = offsets[1:].astype(np.int64)[:, None] + np.arange(-n, 0)
        return (x[rows.reshape(-1)],)


@dataclass(frozen=True)
class VariableOffsets(Op):
    """`0, n, 2n, …, B * n`: where each request's rows of `gather_variable` begin."""

    opcode: ClassVar[str] = "variable_offsets"

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        offsets, count = inputs
        _check_offsets(offsets)
        _check_count(count)
        return (TensorType(DType.int64, offsets.shape, offsets.device),)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        offsets, count = inputs
        return (np.arange(offsets.shape[0], dtype=np.int64) * int(count[0]),)


def slice_columns(x: Value, start: int, stop: int) -> Value:
    """The columns from `start` up to `stop`."""
    return x.graph.add(SliceColumns(start, stop), x)[0]


def concat_columns(*values: Value) -> Value:
    """Values of equal height side by side."""
    if not values:
        raise ValueError("concat_columns needs at least one operand")
    return values[0].graph.add(ConcatColumns(), *values)[0]


def gather_last(x: Value, offsets: Value) -> Value:
    """The last row of each request: `[batch_size, columns]`."""
    return x.graph.add(GatherLast(), x, offsets)[0]


def gather_variable(x: Value, offsets: Value, count: Value) -> Value:
    """The last `count[0]` rows of each request: `[num_logit_rows, columns]`. No request may have fewer rows."""
    return x.graph.add(GatherVariable(), x, offsets, count)[0]


def variable_offsets(offsets: Value, count: Value) -> Value:
    """Where each request's rows of `gather_variable` begin: int64 `[batch_size + 1]`."""
    return offsets.graph.add(VariableOffsets(), offsets, count)[0]
