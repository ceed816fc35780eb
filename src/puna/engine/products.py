"""Lowering of products and of what joins them: neighbours in one buffer, sums behind them, rotated heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from puna.engine.instructions import FieldValue, VirtualBuffer, WeightRef
from puna.engine.placement import Place, unsupported
from puna.graph import Node, Value
from puna.graph.ops.attention import KVStore, PagedAttention, Rope
from puna.graph.ops.elementwise import GLU, Add, Clamp, Scale
from puna.graph.ops.linear import MatMul
from puna.graph.ops.lora import LoRA
from puna.graph.ops.norm import HeadNorm

if TYPE_CHECKING:
    from puna.engine.function_lowering import FunctionLowering

__all__ = ["ProductLowering"]


@dataclass(frozen=True, slots=True, eq=False)
class _Product:
    """A product with what becomes part of its instruction.

    Attributes:
        op: The product.
        nodes: It, and the clamp and the factor after it.
        value: The result of the last of them.
        clip: Limit of the clamp, 0 for none.
        multiplier: The factor.
        sum: The sum that it ends in, or None.
    """

    op: MatMul
    nodes: tuple[Node, ...]
    value: Value
    clip: float = 0.0
    multiplier: float = 1.0
    sum: Node | None = None

    @property
    def operand(self) -> Value:
        """What is multiplied with the matrix."""
        return self.nodes[0].inputs[0]


class _Rotation(NamedTuple):
    """The nodes that one `rope_kv` instruction stands for, and the values before rotation."""

    q_node: Node
    k_node: Node
    q: Value
    k: Value
    v: Value


class ProductLowering:
    """The part of a function's lowering that places products next to each other and joins them with neighbours."""

    def __init__(self, function: FunctionLowering) -> None:
        self.function = function
        self.placement = function.placement
        self.graph = function.graph
        self._targets: dict[Value, Place] = {}
        self._neighbours: dict[VirtualBuffer, list[Node]] = {}
        self._pending_sums: dict[Node, _Product] = {}
        self._scaled_sums: dict[Node, Node] = {}
        self._rotations: dict[Node, _Rotation] = {}

    def plan_neighbours(self) -> None:
        """Give Q, K, V, and gate and up, one buffer each, so that the instruction that reads them needs no copies."""
        for position, node in enumerate(self.graph.nodes):
            if isinstance(node.op, KVStore):
                self._rotations[node] = rotation = self._find_rotation(node, node.op, position)
                self._plan_buffer((rotation.q, rotation.k, rotation.v), f"qkv_{position}")
            elif isinstance(node.op, GLU):
                self._plan_buffer(node.inputs, f"gate_up_{position}")

    def matmul(self, node: Node) -> None:
        """Lower a product, with its neighbours where they read the same operand, or leave it to the sum behind it."""
        product = self._product(node)
        if product.sum is not None:
            self._pending_sums[product.sum] = product
            self.function.absorbed.update(product.nodes)
            return
        run = self._run_of_neighbours(product)
        output = self.function.sole_output(product.value) if self.function.fuse and len(run) == 1 else None
        if output is not None:
            self._emit_output(product, *output)
            return
        target = self._targets.get(run[0].value)
        out = Place(self.function.new_buffer(product.value)) if target is None else target
        self._emit(run, out, None)
        self.placement.retire(*(inner for part in run for inner in part.nodes))
        col = out.col
        for part in run:
            self.function.absorbed.update(part.nodes)
            self.function.define(part.value, Place(out.buffer, col))
            col += part.value.type.width

    def add(self, node: Node) -> None:
        """Lower a sum, with the product or the factor before it."""
        value, product = node.outputs[0], self._pending_sums.get(node)
        if product is not None:
            first, second = node.inputs
            residual = self.placement.dense(second if first is product.value else first)
            operand = self._operand(product)
            self.placement.retire(node, *product.nodes)
            out = self._sum_buffer(value, residual, avoid=operand)
            self._emit([product], Place(out), residual)
        else:
            scaled = self._scaled_sums.get(node)
            first, second = node.inputs
            multiplier = 1.0
            if scaled is not None:
                assert isinstance(scaled.op, Scale)
                first = second if first is scaled.outputs[0] else first
                second, multiplier = scaled.inputs[0], scaled.op.multiplier
            a, b = self.placement.dense(first), self.placement.dense(second)
            self.placement.retire(*((node,) if scaled is None else (node, scaled)))
            out = self._sum_buffer(value, a, b)
            self.function.emit("add", a=a, b=b, out=out, width=value.type.width, multiplier=multiplier)
        self.function.define(value, Place(out))

    def defers_to_sum(self, node: Node) -> bool:
        """Whether a factor is left to the sum that reads it, which applies it with one rounding less."""
        total = self.placement.sole_consumer(node.outputs[0])
        if total is None or not isinstance(total.op, Add) or self._is_taken(total):
            return False
        self._scaled_sums[total] = node
        return True

    def side_by_side(self, values: Sequence[Value], node: Node, *, is_start: bool = True) -> Place:
        """Where values lie one after the other; copies of them where they do not.

        Args:
            values: The values, left to right.
            node: Who reads them.
            is_start: They must begin at the first column of the buffer.
        """
        places = [self.placement.place(value) for value in values]
        first, col = places[0], places[0].col
        fits = not is_start or col == 0
        for place, value in zip(places, values, strict=True):
            fits = fits and place == Place(first.buffer, col)
            col += value.type.width
        if fits:
            return first
        name, widths = node.outputs[0].name, [value.type.width for value in values]
        joined = self.placement.new_buffer(values[0].type, sum(widths), f"{name}_operands")
        col = 0
        for place, width in zip(places, widths, strict=True):
            self.function.emit("copy", x=place.buffer, col=place.col, out=joined, out_col=col, width=width)
            col += width
        return Place(joined)

    def rope_and_store(self, node: Node, op: KVStore) -> None:
        """Lower the rotation of queries and keys and the store of keys and values to one instruction."""
        rotation = self._rotations[node]
        self.function.require_cache(node.inputs[2:])
        rope = rotation.k_node.op
        assert isinstance(rope, Rope)
        assert isinstance(rotation.q_node.op, Rope)
        values = (rotation.q, rotation.k, rotation.v)
        places = [self.placement.place(value) for value in values]
        angles = self.placement.dense(rotation.k_node.inputs[1])
        self.placement.retire(rotation.q_node, rotation.k_node, node)
        if not self._is_rotatable(rotation, places):
            places = self._copies(values, node)
        self.function.emit(
            "rope_kv",
            x=places[0].buffer,
            q_col=places[0].col,
            k_col=places[1].col,
            v_col=places[2].col,
            num_heads=rotation.q_node.op.num_heads,
            num_kv_heads=op.num_kv_heads,
            head_dim=op.head_dim,
            rot_dim=rope.rot_dim,
            interleaved=rope.interleaved,
            angles=angles,
            layer=op.layer,
        )
        self.function.absorbed.update((rotation.q_node, rotation.k_node))
        self.function.define(rotation.q_node.outputs[0], places[0])

    def _product(self, node: Node) -> _Product:
        """The product with what follows it and becomes part of its instruction."""
        assert isinstance(node.op, MatMul)
        nodes, value, clip, multiplier = [node], node.outputs[0], 0.0, 1.0
        plain = _Product(node.op, (node,), value)
        if not self.function.fuse:
            return plain
        after = self.placement.sole_consumer(value)
        if after is not None and isinstance(after.op, Clamp):
            clip, value = after.op.limit, after.outputs[0]
            nodes.append(after)
            plain = _Product(node.op, tuple(nodes), value, clip)
            after = self.placement.sole_consumer(value)
        if after is not None and isinstance(after.op, Scale):
            multiplier, value = after.op.multiplier, after.outputs[0]
            nodes.append(after)
            after = self.placement.sole_consumer(value)
        if after is None or not isinstance(after.op, Add) or self._is_taken(after):
            return plain
        return _Product(node.op, tuple(nodes), value, clip, multiplier, after)

    def _is_taken(self, total: Node) -> bool:
        return total in self._pending_sums or total in self._scaled_sums

    def _run_of_neighbours(self, product: _Product) -> list[_Product]:
        """The products around this one in its buffer that one instruction can compute, left to right."""
        target = self._targets.get(product.value)
        if target is None or not self.function.fuse:
            return [product]
        run: list[_Product] = []
        for node in self._neighbours[target.buffer]:
            part = product if node is product.nodes[0] else self._product(node)
            if node not in self.function.absorbed and self._matches(part, product):
                run.append(part)
            elif product in run:
                break
            else:
                run.clear()
        return run

    def _matches(self, part: _Product, product: _Product) -> bool:
        partner = self.function.partner
        same_kind = partner(part.op.weight.name) == partner(product.op.weight.name)
        same_kind = same_kind and part.op.two_terms == product.op.two_terms
        return same_kind and part.operand is product.operand and part.clip == product.clip

    def _operand(self, product: _Product) -> VirtualBuffer:
        if self.function.partner(product.op.weight.name) == "a8":
            is_fine = product.op.two_terms
            return self.function.fine_codes(product.operand) if is_fine else self.function.codes(product.operand)
        return self.placement.dense(product.operand)

    def _emit(self, run: Sequence[_Product], out: Place, residual: VirtualBuffer | None) -> None:
        fields = self._fields(run)
        self.function.emit("matmul", **fields, out=out.buffer, out_col=out.col, residual=residual)

    def _emit_output(self, product: _Product, output: int, col: int) -> None:
        """A product that goes straight to where the caller finds it."""
        self.function.emit("matmul_out", **self._fields([product]), output=output, out_col=col)
        self.placement.retire(*product.nodes)
        self.placement.uses_left[product.value] -= 1
        self.function.absorbed.update(product.nodes)

    def _fields(self, run: Sequence[_Product]) -> dict[str, FieldValue]:
        """What an instruction says of products side by side, but for where they go."""
        biases = (part.op.bias for part in run)
        operand = self._operand(run[0])
        return {
            "x": operand,
            "width": run[0].operand.type.width,
            "weights": tuple(WeightRef(part.op.weight.name) for part in run),
            "biases": tuple(None if bias is None else WeightRef(bias.name) for bias in biases),
            "clip": run[0].clip,
            "multiplier": run[0].multiplier,
            "two_terms": run[0].op.two_terms,
        }

    def _sum_buffer(self, value: Value, *terms: VirtualBuffer, avoid: VirtualBuffer | None = None) -> VirtualBuffer:
        """A term's buffer if the sum may replace it, else a new one."""
        for term in terms:
            if term is not avoid and self.placement.is_overwritable(term, value.type.width):
                return term
        return self.function.new_buffer(value)

    def _plan_buffer(self, values: Sequence[Value], name: str) -> None:
        roots = [self._root(value) for value in values]
        found = [root for root in roots if root is not None]
        if len(set(found)) != len(values):
            return
        widths = [value.type.width for value in values]
        buffer = self.placement.new_buffer(values[0].type, sum(widths), name)
        self._neighbours[buffer] = found
        col = 0
        for value, root, width in zip(values, found, widths, strict=True):
            self._targets[value] = self._targets[root.outputs[0]] = Place(buffer, col)
            col += width

    def _root(self, value: Value) -> Node | None:
        """The product that a value is, or becomes by what works in place, if nobody else reads it."""
        node = self.placement.producer.get(value)
        while node is not None and isinstance(node.op, Clamp | HeadNorm | LoRA):
            if self.placement.sole_consumer(value) is None:
                return None
            value = node.inputs[1 + node.outputs.index(value) if isinstance(node.op, LoRA) else 0]
            node = self.placement.producer.get(value)
        if node is None or not isinstance(node.op, MatMul) or self.placement.sole_consumer(value) is None:
            return None
        return None if value in self._targets else node

    def _find_rotation(self, node: Node, op: KVStore, position: int) -> _Rotation:
        k, v = node.inputs[:2]
        k_node = self.placement.producer.get(k)
        if k_node is None or not isinstance(k_node.op, Rope) or self.placement.sole_consumer(k) is not node:
            raise unsupported(self.graph, "the keys of kv_store", k.name, "keys that rope rotated, for the store only")
        for later in self.graph.nodes[position + 1 :]:
            is_attention = isinstance(later.op, PagedAttention) and later.op.layer == op.layer
            if is_attention and later.inputs[2:] == node.inputs[3:]:
                q_node = self.placement.producer.get(later.inputs[0])
                break
        else:
            raise unsupported(self.graph, "kv_store", f"layer {op.layer}", "a store that attention reads after it")
        if q_node is None or not isinstance(q_node.op, Rope):
            raise unsupported(self.graph, "the queries of paged_attention", later.inputs[0].name, "queries from rope")
        sizes = [(rope.head_dim, rope.rot_dim, rope.interleaved) for rope in (q_node.op, k_node.op)]
        if sizes[0] != sizes[1] or q_node.inputs[1] is not k_node.inputs[1]:
            raise unsupported(self.graph, "rope", f"{sizes[0]} and {sizes[1]}", "queries and keys rotated alike")
        return _Rotation(q_node, k_node, q_node.inputs[0], k_node.inputs[0], v)

    def _is_rotatable(self, rotation: _Rotation, places: Sequence[Place]) -> bool:
        """Whether rotation in place changes nothing that somebody still needs."""
        if len({place.buffer for place in places}) > 1:
            return False
        rotated = zip(places, (rotation.q, rotation.k), strict=False)
        return all(self.placement.is_free(place, value.type.width) for place, value in rotated)

    def _copies(self, values: Sequence[Value], node: Node) -> list[Place]:
        widths = [value.type.width for value in values]
        buffer = self.placement.new_buffer(values[0].type, sum(widths), f"{values[0].name}_qkv")
        places, col = [], 0
        for value, width in zip(values, widths, strict=True):
            source = self.placement.place(value)
            self.function.emit("copy", x=source.buffer, col=source.col, out=buffer, out_col=col, width=width)
            places.append(Place(buffer, col))
            col += width
        return places
