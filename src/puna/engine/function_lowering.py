"""Lowering of one function: the main graph, or a subgraph with the buffers of its first call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from puna.engine.adapter_lowering import lower_lora, lower_lora_embedding
from puna.engine.instructions import (
    BufferKind,
    CallInstruction,
    FieldValue,
    Function,
    Instruction,
    VirtualBuffer,
    WeightRef,
)
from puna.engine.placement import LoweredSubgraph, Place, Placement, unsupported
from puna.engine.products import ProductLowering
from puna.graph import Call, Graph, Node, Value, Weight
from puna.graph.ops.attention import KVStore, PagedAttention, Rope, RopeAngles
from puna.graph.ops.elementwise import GLU, Add, Clamp, Divide, Scale, Softcap
from puna.graph.ops.linear import Embedding, MatMul
from puna.graph.ops.lora import LoRA, LoRAEmbedding
from puna.graph.ops.norm import HeadNorm, LayerNorm, RMSNorm
from puna.graph.ops.rows import ConcatColumns, GatherLast, GatherVariable, SliceColumns, VariableOffsets

__all__ = ["FunctionLowering", "SubgraphLowering"]

SubgraphLowering = Callable[[Graph, str, Sequence["Place | str"]], LoweredSubgraph]


class FunctionLowering:
    """Turns the nodes of a graph into the instructions of a function.

    Args:
        graph: The nodes.
        function: Where instructions go.
        partner: What products with a matrix of this name take: `"a8"` or `"f32"`.
        fuse: Whether neighbours become one instruction where that is a choice.
        inputs: Where the graph's inputs are, or the names of the program's inputs that they stand for.
        subgraph: Lowers the graph of a call; None in a subgraph, which may not call another.
    """

    def __init__(
        self,
        graph: Graph,
        function: Function,
        *,
        partner: Callable[[str], str],
        fuse: bool,
        inputs: Mapping[Value, Place | str],
        subgraph: SubgraphLowering | None,
    ) -> None:
        self.graph = graph
        self.function = function
        self.partner = partner
        self.fuse = fuse
        self.subgraph = subgraph
        self.placement = Placement(graph, self._emit_copy)
        self.products = ProductLowering(self)
        self.absorbed: set[Node] = set()
        self._names: dict[Value, str] = {}
        self._codes: dict[Value, VirtualBuffer] = {}
        self._early_outputs: dict[Value, list[tuple[int, int]]] = {}
        for value, place in inputs.items():
            if isinstance(place, Place):
                self.placement.define(value, place)
            else:
                self._names[value] = place

    def run(self) -> None:
        """Lower everything, in order."""
        if self.subgraph is not None:
            self._plan_outputs()
        self.products.plan_neighbours()
        for node in self.graph.nodes:
            if node not in self.absorbed:
                self._lower(node)
        for node in self.graph.nodes:
            if isinstance(node.op, Rope) and node not in self.absorbed:
                raise unsupported(self.graph, "rope", node.outputs[0].name, "keys that are stored, queries that attend")

    def result_place(self, value: Value) -> Place:
        """Where an output of a subgraph is."""
        return self.placement.place(value)

    def emit(self, op: str, **fields: FieldValue) -> None:
        """Append an instruction."""
        self.function.instructions.append(Instruction(op, fields))

    def define(self, value: Value, place: Place) -> None:
        """Say where a value is; what the program returns of it is copied out at once: its buffer is free early."""
        self.placement.define(value, place)
        for output, col in self._early_outputs.get(value, ()):
            self.emit(
                "copy_out",
                x=place.buffer,
                col=place.col,
                width=value.type.width,
                output=output,
                out_col=col,
                rows=place.buffer.rows,
            )
            self.placement.uses_left[value] -= 1

    def sole_output(self, value: Value) -> tuple[int, int] | None:
        """The output and the column in it of a value that nothing but one output of the program needs."""
        found = self._early_outputs.get(value, [])
        return found[0] if len(found) == 1 and self.placement.uses_left[value] == 1 else None

    def new_buffer(self, value: Value, width: int | None = None, kind: BufferKind = "f32") -> VirtualBuffer:
        """A buffer for a value."""
        return self.placement.new_buffer(value.type, value.type.width if width is None else width, value.name, kind)

    def codes(self, value: Value) -> VirtualBuffer:
        """The value rounded to 8 bits; an instruction for that where no earlier one did it."""
        if value not in self._codes:
            place = self.placement.place(value)
            codes = self.new_buffer(value, kind="a8")
            self._quantize(place, value, codes)
            self._codes[value] = codes
        return self._codes[value]

    def fine_codes(self, value: Value) -> VirtualBuffer:
        """The value rounded to 8 bits in two terms."""
        codes = self.new_buffer(value, kind="a8x2")
        self._quantize(self.placement.place(value), value, codes)
        return codes

    def _quantize(self, place: Place, value: Value, codes: VirtualBuffer) -> None:
        two_terms = codes.kind == "a8x2"
        width = value.type.width
        self.emit("quantize", x=place.buffer, col=place.col, width=width, out_a8=codes, two_terms=two_terms)

    def is_codes_operand(self, node: Node) -> bool:
        """Whether a node is a product that takes 8-bit codes in one term."""
        return isinstance(node.op, MatMul) and self.partner(node.op.weight.name) == "a8" and not node.op.two_terms

    def define_in_needed_forms(self, value: Value) -> tuple[VirtualBuffer | None, VirtualBuffer | None]:
        """Buffers for a result as float32 and as 8-bit codes, each only if somebody reads that form.

        Call `define_forms` with them once the instruction that fills them is there.
        """
        consumers = self.placement.consumers.get(value, [])
        wants_codes = self.fuse and any(self.is_codes_operand(node) for node in consumers)
        wants_floats = value in self.graph.outputs or not (wants_codes and all(map(self.is_codes_operand, consumers)))
        floats = self.new_buffer(value) if wants_floats else None
        return floats, self.new_buffer(value, kind="a8") if wants_codes else None

    def define_forms(self, value: Value, floats: VirtualBuffer | None, codes: VirtualBuffer | None) -> None:
        """Say where the two forms of a value are."""
        if codes is not None:
            self._codes[value] = codes
        if floats is not None:
            self.define(value, Place(floats))

    def _emit_copy(self, source: Place, target: Place, width: int) -> None:
        self.emit("copy", x=source.buffer, col=source.col, out=target.buffer, out_col=target.col, width=width)

    def require_input(self, value: Value, name: str) -> None:
        """Check that a value is this input of the program."""
        if self._names.get(value) != name:
            raise unsupported(self.graph, f"the operand {name}", repr(value.name), f"the program's input {name}")

    def _lower(self, node: Node) -> None:
        match node.op:
            case Embedding(weight=weight):
                self._embedding(node, weight)
            case RMSNorm() | LayerNorm():
                self._norm(node, node.op)
            case MatMul():
                self.products.matmul(node)
            case Add():
                self.products.add(node)
            case Scale(multiplier=multiplier):
                self._scale(node, multiplier, is_division=False)
            case Divide(divisor=divisor):
                self._scale(node, divisor, is_division=True)
            case Clamp(limit=limit):
                self._clamp(node, limit)
            case HeadNorm():
                self._head_norm(node, node.op)
            case Softcap(cap=cap):
                self._softcap(node, cap)
            case GLU(activation=activation):
                self._glu(node, activation)
            case SliceColumns(start=start):
                source = self.placement.place(node.inputs[0])
                self.placement.retire(node)
                self.define(node.outputs[0], Place(source.buffer, source.col + start))
            case ConcatColumns():
                self._concat(node)
            case GatherLast():
                self._gather(node, "last")
            case GatherVariable():
                self.require_input(node.inputs[2], "return_n_logits")
                self._gather(node, "variable")
            case RopeAngles(rope=rope):
                self._rope_angles(node, rope)
            case Rope():
                pass  # part of the store of the keys
            case KVStore():
                self.products.rope_and_store(node, node.op)
            case PagedAttention():
                self._attention(node, node.op)
            case LoRA():
                lower_lora(self, node, node.op)
            case LoRAEmbedding():
                lower_lora_embedding(self, node, node.op)
            case Call():
                self._call(node, node.op)
            case _:
                raise unsupported(self.graph, "the operation", node.op.opcode)

    def _embedding(self, node: Node, weight: Weight) -> None:
        self.require_input(node.inputs[0], "tokens")
        value, multiplier = node.outputs[0], 1.0
        scale = self.placement.sole_consumer(value) if self.fuse else None
        if scale is not None and isinstance(scale.op, Scale):
            value, multiplier = scale.outputs[0], scale.op.multiplier
            self.absorbed.add(scale)
        out = self.new_buffer(value)
        self.emit("embed", weight=WeightRef(weight.name), out=out, scale=multiplier)
        self.define(value, Place(out))

    def _norm(self, node: Node, op: RMSNorm | LayerNorm) -> None:
        value = node.outputs[0]
        x = self.placement.dense(node.inputs[0])
        self.placement.retire(node)
        out, out_a8 = self.define_in_needed_forms(value)
        bias = op.bias if isinstance(op, LayerNorm) else None
        self.emit(
            "norm",
            x=x,
            out=out,
            out_a8=out_a8,
            kind="rms" if isinstance(op, RMSNorm) else "layer",
            eps=op.eps,
            weight=None if op.weight is None else WeightRef(op.weight.name),
            bias=None if bias is None else WeightRef(bias.name),
            width=value.type.width,
        )
        self.define_forms(value, out, out_a8)

    def _scale(self, node: Node, factor: float, *, is_division: bool) -> None:
        if not is_division and self.products.defers_to_sum(node):
            return
        value = node.outputs[0]
        x = self.placement.dense(node.inputs[0])
        self.placement.retire(node)
        width = value.type.width
        out = x if self.placement.is_overwritable(x, width) else self.new_buffer(value)
        self.emit("scale", x=x, out=out, width=width, multiplier=factor, divide=is_division)
        self.define(value, Place(out))

    def _clamp(self, node: Node, limit: float) -> None:
        place = self._own_place(node)
        width = node.outputs[0].type.width
        self.emit("clamp", x=place.buffer, col=place.col, width=width, limit=limit)
        self.define(node.outputs[0], place)

    def _softcap(self, node: Node, cap: float) -> None:
        place = self._own_place(node)
        self.emit("softcap", x=place.buffer, col=place.col, width=node.outputs[0].type.width, cap=cap)
        self.define(node.outputs[0], place)

    def _head_norm(self, node: Node, op: HeadNorm) -> None:
        place, value, width = self._own_place(node), node.outputs[0], op.weight.shape[0]
        self.emit(
            "head_norm",
            x=place.buffer,
            col=place.col,
            width=width,
            parts=value.type.width // width,
            eps=op.eps,
            weight=WeightRef(op.weight.name),
        )
        self.define(value, place)

    def _own_place(self, node: Node) -> Place:
        """The place of the only operand of what works in place."""
        self.placement.retire(node)
        return self.free_place(node.inputs[0])

    def free_place(self, x: Value) -> Place:
        """Where a value is, if nobody needs it any more; else a copy. What works in place may write there."""
        place = self.placement.place(x)
        return place if self.placement.is_free(place, x.type.width) else self.copy_of(x)

    def copy_of(self, x: Value) -> Place:
        """A buffer of its own with a copy of a value."""
        fresh = Place(self.new_buffer(x))
        self._emit_copy(self.placement.place(x), fresh, x.type.width)
        return fresh

    def _glu(self, node: Node, activation: str) -> None:
        value = node.outputs[0]
        width = value.type.width
        x = self.products.side_by_side(node.inputs, node).buffer
        self.placement.retire(node)
        out, out_a8 = self.define_in_needed_forms(value)
        self.emit("glu", x=x, width=width, out=out, out_a8=out_a8, activation=activation)
        self.define_forms(value, out, out_a8)

    def _concat(self, node: Node) -> None:
        place = self.products.side_by_side(node.inputs, node, is_start=False)
        self.placement.retire(node)
        self.define(node.outputs[0], place)

    def _gather(self, node: Node, mode: str) -> None:
        self.require_input(node.inputs[1], "input_row_offsets")
        value = node.outputs[0]
        x = self.placement.dense(node.inputs[0])
        self.placement.retire(node)
        out = self.new_buffer(value)
        self.emit("gather_rows", x=x, out=out, width=value.type.width, mode=mode)
        self.define(value, Place(out))

    def _rope_angles(self, node: Node, rope: FieldValue) -> None:
        names = ("tokens", "input_row_offsets", "cache_lengths", "request_lengths")
        for value, name in zip(node.inputs, names, strict=False):
            self.require_input(value, name)
        out = self.new_buffer(node.outputs[0])
        self.emit("rope_angles", rope=rope, out=out)
        self.define(node.outputs[0], Place(out))

    def require_cache(self, inputs: Sequence[Value]) -> None:
        """Check that these are the row offsets and the cache of the step."""
        names = ("input_row_offsets", "kv_blocks", "cache_lengths", "lookup_table", "kv_scales")
        for value, name in zip(inputs, names, strict=False):  # scales where the cache has any
            self.require_input(value, name)

    def _attention(self, node: Node, op: PagedAttention) -> None:
        self.require_cache(node.inputs[1:])
        place = self.placement.place(node.inputs[0])
        self.placement.retire(node)
        out = self.new_buffer(node.outputs[0])
        self.emit(
            "attention",
            x=place.buffer,
            q_col=place.col,
            out=out,
            num_heads=op.num_heads,
            num_kv_heads=op.num_kv_heads,
            head_dim=op.head_dim,
            layer=op.layer,
            scale=op.scale,
            window=op.window,
            softcap=op.softcap,
        )
        self.define(node.outputs[0], Place(out))

    def _plan_outputs(self) -> None:
        """Decide where each output of the program is copied out: floats as soon as they are there, offsets at once."""
        for index, value in enumerate(self.graph.outputs):
            node = self.placement.producer.get(value)
            if node is None:
                self.require_input(value, "input_row_offsets")
                self.emit("offsets_out", output=index, mode="all")
            elif isinstance(node.op, VariableOffsets):
                self.require_input(node.inputs[0], "input_row_offsets")
                self.require_input(node.inputs[1], "return_n_logits")
                self.emit("offsets_out", output=index, mode="variable")
                self.absorbed.add(node)
            elif isinstance(node.op, ConcatColumns) and self.placement.uses_left[value] == 1:
                col = 0
                for operand in node.inputs:
                    self._early_outputs.setdefault(operand, []).append((index, col))
                    col += operand.type.width
                self.absorbed.add(node)
            else:
                self._early_outputs.setdefault(value, []).append((index, 0))

    def _call(self, node: Node, op: Call) -> None:
        if self.subgraph is None:
            raise unsupported(self.graph, "call", op.subgraph.name, "calls from the main graph only")
        if len(node.inputs) != len(op.subgraph.inputs):
            raise unsupported(self.graph, "call", f"{len(node.inputs)} operands", "calls with every optional operand")
        placement = self.placement
        first_places: list[Place | str] = []
        for value in node.inputs:
            if value in self._names:
                first_places.append(self._names[value])
                continue
            placement.dense(value)
            if any(isinstance(p, Place) and p.buffer is placement.place(value).buffer for p in first_places):
                placement.move(value, self.new_buffer(value))
            first_places.append(placement.place(value))
        lowered = self.subgraph(op.subgraph, op.prefix, first_places)
        placement.retire(node)
        self._bring_operands(node, lowered)
        self.function.instructions.append(CallInstruction(lowered.function, op.prefix, op.layer))
        for value, place in zip(node.outputs, lowered.results, strict=True):
            self.define(value, place)

    def _bring_operands(self, node: Node, lowered: LoweredSubgraph) -> None:
        """Put operands where the function expects them, and out of its way what is needed after it."""
        placement = self.placement
        strays: list[tuple[Value, VirtualBuffer]] = []
        for value, parameter in zip(node.inputs, lowered.parameters, strict=True):
            if isinstance(parameter, str):
                self.require_input(value, parameter)
            elif placement.place(value) != parameter:
                strays.append((value, parameter.buffer))
        clobbered = {buffer for _, buffer in strays}
        for instruction in lowered.function.instructions:
            assert isinstance(instruction, Instruction)
            clobbered.update(instruction.writes)
        for buffer in sorted(clobbered, key=lambda buffer: buffer.name):
            for value in placement.live_values(buffer):  # an operand among them is still where the function reads it
                placement.move(value, self.new_buffer(value))
        for value, _ in strays:
            if placement.place(value).buffer in clobbered:
                placement.move(value, self.new_buffer(value))
        for value, buffer in strays:
            self._emit_copy(placement.place(value), Place(buffer), value.type.width)
