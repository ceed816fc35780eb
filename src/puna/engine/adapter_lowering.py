"""Lowering of low-rank updates: they work in place on the products that they update."""

from __future__ import annotations

from typing import TYPE_CHECKING

from puna.engine.instructions import FieldValue, VirtualBuffer
from puna.engine.placement import Place
from puna.graph import Node
from puna.graph.ops.lora import MODEL_LAYER, LoRA, LoRAEmbedding, target_number

if TYPE_CHECKING:
    from puna.engine.function_lowering import FunctionLowering

__all__ = ["lower_lora", "lower_lora_embedding"]

_LANES = 16  # of a rank's columns in the buffer between the two matrices


def lower_lora(function: FunctionLowering, node: Node, op: LoRA) -> None:
    """Lower the updates of products of one operand: one instruction for all products that are in one buffer."""
    _require_groups(function, node)
    placement = function.placement
    x = placement.dense(node.inputs[0])
    products = node.inputs[1:-3]
    placement.retire(node)
    places: dict[VirtualBuffer, list[tuple[int, Place]]] = {}
    taken = [(x, 0, x.width)]
    for position, product in enumerate(products):
        place, width = function.free_place(product), product.type.width
        if any(buffer is place.buffer and col < place.col + width and place.col < end for buffer, col, end in taken):
            place = function.copy_of(product)
        taken.append((place.buffer, place.col, place.col + width))
        places.setdefault(place.buffer, []).append((position, place))
    for buffer, some in places.items():
        low = function.new_buffer(node.inputs[0], _low_width(op.max_rank, len(some)))
        function.emit(
            "lora",
            x=x,
            width=node.inputs[0].type.width,
            out=buffer,
            **_fields(low, op.max_rank, op.layer),
            targets=tuple(target_number(op.targets[position]) for position, _ in some),
            columns=tuple(place.col for _, place in some),
            widths=tuple(products[position].type.width for position, _ in some),
        )
        for position, place in some:
            function.define(node.outputs[position], place)


def lower_lora_embedding(function: FunctionLowering, node: Node, op: LoRAEmbedding) -> None:
    """Lower the update of a look-up."""
    _require_groups(function, node)
    function.require_input(node.inputs[0], "tokens")
    rows = node.inputs[1]
    function.placement.retire(node)
    place = function.free_place(rows)
    function.emit(
        "lora_embed",
        out=place.buffer,
        **_fields(function.new_buffer(rows, _low_width(op.max_rank, 1)), op.max_rank, MODEL_LAYER),
        targets=(target_number("embed_tokens"),),
        columns=(place.col,),
        widths=(rows.type.width,),
    )
    function.define(node.outputs[0], place)


def _fields(low: VirtualBuffer, rank: int, layer: int) -> dict[str, FieldValue]:
    return {"low": low, "rank": rank, "layer": layer}


def _low_width(rank: int, count: int) -> int:
    return -(-rank // _LANES) * _LANES * count


def _require_groups(function: FunctionLowering, node: Node) -> None:
    names = ("input_row_offsets", "lora_ids", "lora_grouped_offsets")
    for value, name in zip(node.inputs[-3:], names, strict=True):
        function.require_input(value, name)
