"""Low-rank updates of products and look-ups, for the rows of requests that have an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple

import numpy as np

from puna.dtype import DType
from puna.errors import ShapeError
from puna.graph.ops.op import Array, EvaluationContext, Op, check_dtype, check_float_rows
from puna.graph.type import TensorType, describe
from puna.graph.value import Value

__all__ = [
    "LAYER_TARGETS",
    "MODEL_LAYER",
    "MODEL_TARGETS",
    "AdapterValues",
    "LoRA",
    "LoRAEmbedding",
    "lora",
    "lora_embedding",
    "target_number",
]

LAYER_TARGETS: Final = (
    *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
"""Products of a layer that adapters may update; of a stacked matrix its parts."""
MODEL_TARGETS: Final = ("embed_tokens", "lm_head")
"""What they may update outside of layers."""
MODEL_LAYER: Final = -1
"""The layer number of `MODEL_TARGETS`."""


def target_number(name: str) -> int:
    """The number by which the native program knows a target."""
    return (MODEL_TARGETS if name in MODEL_TARGETS else LAYER_TARGETS).index(name)


class AdapterValues(NamedTuple):
    """Which rows of a step have which adapter.

    Attributes:
        row_offsets: uint32 `[batch_size + 1]`: the requests' rows.
        ids: int32 `[num_groups]`: the slot of each group of consecutive requests with one adapter.
        grouped_offsets: uint32 `[num_groups + 1]`: the groups' rows, from 0 on; rows behind the last have none.
        max_rank: The largest rank.
    """

    row_offsets: Value
    ids: Value
    grouped_offsets: Value
    max_rank: int

    @property
    def operands(self) -> tuple[Value, ...]:
        """The values."""
        return (self.row_offsets, self.ids, self.grouped_offsets)


def _check_groups(operands: Sequence[TensorType]) -> None:
    expected = (("row offsets", DType.uint32), ("adapter slots", DType.int32), ("offsets of groups", DType.uint32))
    for operand, (what, dtype) in zip(operands, expected, strict=True):
        check_dtype(f"the {what}", operand, dtype)
        if operand.rank != 1:
            raise ShapeError(f"the {what}", describe(operand.shape), "[entries]")


def _groups(num_rows: int, operands: Sequence[Array]) -> Iterator[tuple[slice, int]]:
    """The rows and the slot of each group, in a value with as many rows as tokens, or equally many of each request."""
    offsets, ids, borders = (operand.astype(np.int64) for operand in operands)
    if num_rows != offsets[-1]:
        borders = np.searchsorted(offsets, borders) * (num_rows // (len(offsets) - 1))
    for group, slot in enumerate(ids.tolist()):
        yield slice(int(borders[group]), int(borders[group + 1])), slot


@dataclass(frozen=True)
class LoRA(Op):
    """`y_i + scale_i * (x @ A_i.T) @ B_i.T` for products y_i of one operand x.

    A and B are those of the adapter of a row's request, in float32; rows without an adapter, and products that it does
    not update, stay as they are.
    """

    targets: tuple[str, ...]
    layer: int
    max_rank: int
    opcode: ClassVar[str] = "lora"

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, products = inputs[0], inputs[1:-3]
        check_float_rows("the operand of lora", x)
        if len(products) != len(self.targets):
            raise ShapeError("the products of lora", f"{len(products)} products", f"{len(self.targets)} of them")
        for product, target in zip(products, self.targets, strict=True):
            check_float_rows(f"the product {target} of lora", product)
            if product.shape[0] != x.shape[0]:
                raise ShapeError(f"the product {target} of lora", describe(product.shape), f"{x.shape[0]} rows")
        _check_groups(inputs[-3:])
        return tuple(products)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        x, products = inputs[0], [product.copy() for product in inputs[1:-3]]
        for rows, slot in _groups(len(x), inputs[-3:]):
            for product, target in zip(products, self.targets, strict=True):
                update = context.adapter(slot, self.layer, target)
                if update is not None:
                    a, b, scale = update
                    product[rows] += np.float32(scale) * (x[rows] @ a.T @ b.T)
        return tuple(products)


@dataclass(frozen=True)
class LoRAEmbedding(Op):
    """`y + scale * A[tokens] @ B.T` for a look-up y by token; A is `[vocabulary, rank]`. Otherwise as `LoRA`."""

    max_rank: int
    opcode: ClassVar[str] = "lora_embedding"

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        tokens, rows = inputs[:2]
        check_dtype("the tokens of lora_embedding", tokens, DType.int64)
        check_float_rows("the operand of lora_embedding", rows)
        if tokens.shape != rows.shape[:1]:
            raise ShapeError("the tokens of lora_embedding", describe(tokens.shape), f"[{rows.shape[0]}]")
        _check_groups(inputs[2:])
        return (rows,)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        tokens, result = inputs[0], inputs[1].copy()
        for rows, slot in _groups(len(result), inputs[2:]):
            update = context.adapter(slot, MODEL_LAYER, "embed_tokens")
            if update is not None:
                a, b, scale = update
                result[rows] += np.float32(scale) * (a[tokens[rows]] @ b.T)
        return (result,)


def lora(
    x: Value, products: Sequence[Value], targets: Sequence[str], adapters: AdapterValues, layer: int = MODEL_LAYER
) -> tuple[Value, ...]:
    """Products of one operand with what the adapters of their rows add to them.

    Args:
        x: The operand, float32 `[rows, inputs]`.
        products: Products with it, float32 `[rows, outputs]` each.
        targets: Their names, of `LAYER_TARGETS` or `MODEL_TARGETS`.
        adapters: Which rows have which adapter.
        layer: The layer; a call's is added.
    """
    return x.graph.add(LoRA(tuple(targets), layer, adapters.max_rank), x, *products, *adapters.operands)


def lora_embedding(tokens: Value, rows: Value, adapters: AdapterValues) -> Value:
    """Rows that were looked up by token, with what the adapters add to them."""
    return rows.graph.add(LoRAEmbedding(adapters.max_rank), tokens, rows, *adapters.operands)[0]
