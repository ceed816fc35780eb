"""Look-ups in weight matrices, products with them, and the rounding of activations before some products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from puna.dtype import DType
from puna.errors import ShapeError
from puna.graph.ops.op import Array, EvaluationContext, Float32Array, Op, check_dtype, check_float_rows
from puna.graph.type import TensorType, describe
from puna.graph.value import Value, Weight

__all__ = ["CODE_BLOCK", "Embedding", "MatMul", "embedding", "matmul", "quantize_codes", "round_operand"]

CODE_BLOCK: Final = 32
"""Activations that share one scale when they are quantized to 8 bits."""


def quantize_codes(x: Float32Array) -> tuple[npt.NDArray[np.int8], Float32Array, npt.NDArray[np.int32]]:
    """Round activations to 8 bits per block of 32: `d = max|x| / 127`, `code = rint(x * (1 / d))` (0 where d is 0).

    Args:
        x: float32 `[rows, columns]`, columns a multiple of 32.

    Returns:
        Codes int8 `[rows, columns]`, scales float32 `[rows, columns / 32]`, sums of codes int32 `[rows, columns / 32]`.

    Raises:
        ShapeError: columns that are not a multiple of 32.
    """
    rows, columns = x.shape
    if columns % CODE_BLOCK:
        raise ShapeError("activations that are quantized", describe(x.shape), f"columns that {CODE_BLOCK} divides")
    blocks = x.reshape(rows, columns // CODE_BLOCK, CODE_BLOCK)
    scales = np.max(np.abs(blocks), axis=-1) / np.float32(127)
    scales[scales < np.finfo(np.float32).tiny] = 0  # kernels run with denormals flushed to zero
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    codes = np.rint(blocks * inverse[..., None]).astype(np.int8)
    return codes.reshape(rows, columns), scales, codes.sum(axis=-1, dtype=np.int32)


def round_operand(x: Float32Array, *, two_terms: bool) -> Float32Array:
    """What codes stand for: `d * code`, and with `two_terms` also the codes of what these leave.

    Args:
        x: float32 `[rows, columns]`, columns a multiple of 32.
        two_terms: Whether the codes of the rest are added.
    """
    codes, scales, _ = quantize_codes(x)
    # In 64 bits the product of a code and a scale is exact: what is left is rounded once, as by one fma.
    values = codes * np.repeat(scales, CODE_BLOCK, axis=-1).astype(np.float64)
    if not two_terms:
        return values.astype(np.float32)
    return values.astype(np.float32) + round_operand((x - values).astype(np.float32), two_terms=False)


@dataclass(frozen=True)
class Embedding(Op):
    """Row `tokens[t]` of a matrix for each token; quantized rows are converted to float32 exactly."""

    weight: Weight
    opcode: ClassVar[str] = "embedding"

    @property
    def weights(self) -> tuple[Weight, ...]:
        return (self.weight,)

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        (tokens,) = inputs
        check_dtype("the tokens of embedding", tokens, DType.int64)
        if tokens.rank != 1:
            raise ShapeError("the tokens of embedding", describe(tokens.shape), "[tokens]")
        shape = self.weight.shape
        if len(shape) != 2:
            raise ShapeError(f"weight {self.weight.name!r} of embedding", describe(shape), "[rows, columns]")
        return (TensorType(DType.float32, (tokens.shape[0], shape[1]), tokens.device),)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        return (context.weight(self.weight)[inputs[0]],)


@dataclass(frozen=True)
class MatMul(Op):
    """`x @ weight.T + bias`.

    A matrix in a block format that has an integer kernel is multiplied with activations rounded to 8 bits
    (`quantize_codes`); the twin then multiplies the rounded activations with the exact values of the blocks: the same
    sum in exact arithmetic. `two_terms` adds the codes of what the first ones leave: about 15 bits instead of 7, for
    twice the arithmetic. A bfloat16 matrix takes activations rounded to bfloat16, and with `two_terms` as they are.
    """

    weight: Weight
    bias: Weight | None = None
    two_terms: bool = False
    opcode: ClassVar[str] = "matmul"

    @property
    def weights(self) -> tuple[Weight, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        shape = self.weight.shape
        if len(shape) != 2:
            raise ShapeError(f"weight {self.weight.name!r} of matmul", describe(shape), "[outputs, inputs]")
        check_float_rows(f"the operand of matmul with {self.weight.name!r}", inputs[0], shape[1])
        if self.bias is not None and self.bias.shape != (shape[0],):
            raise ShapeError(f"bias {self.bias.name!r} of matmul", describe(self.bias.shape), f"[{shape[0]}]")
        return (inputs[0].with_shape(inputs[0].shape[0], shape[0]),)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        x = inputs[0]
        context.observe(self.weight, x)
        rounding = context.rounding(self.weight)
        if rounding == "codes":
            x = round_operand(x, two_terms=self.two_terms)
        elif rounding == "bfloat16" and not self.two_terms:
            x = x.astype(ml_dtypes.bfloat16).astype(np.float32)
        y = x @ context.weight(self.weight).T
        return (y if self.bias is None else y + context.weight(self.bias),)


def embedding(tokens: Value, weight: Weight) -> Value:
    """Rows of a matrix `[vocabulary, columns]` by token id: float32 `[tokens, columns]`."""
    return tokens.graph.add(Embedding(weight), tokens)[0]


def matmul(x: Value, weight: Weight, bias: Weight | None = None, *, two_terms: bool = False) -> Value:
    """Rows times the transpose of a matrix `[outputs, inputs]`, plus a bias `[outputs]` if there is one.

    Where the matrix takes activations of 8 bits, `two_terms` gives it about 15; where it takes bfloat16, float32.
    """
    return x.graph.add(MatMul(weight, bias, two_terms), x)[0]
