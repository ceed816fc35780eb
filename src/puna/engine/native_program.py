"""The native executor: instructions emitted to `puna._native.Program`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from puna.engine.instructions import (
    CallInstruction,
    FieldValue,
    Function,
    Instruction,
    LoweredProgram,
    VirtualBuffer,
    WeightRef,
)
from puna.engine.lowering import lower
from puna.engine.memory_plan import MemoryPlan, plan_memory
from puna.engine.packed_weights import PackedWeights, Packer, Precision, pack_weights
from puna.graph import Graph
from puna.graph.weights.weight_data import WeightData

if TYPE_CHECKING:
    from puna._native import Program
    from puna.engine.adapters import AdapterSlots
    from puna.engine.packed_cache.store import PackedCache

__all__ = ["ActivationMemory", "LoadReport", "NativeExecutor", "emit_program", "plan_activations"]

Array = np.ndarray[Any, Any]


class Native(Packer, Protocol):
    """The part of `puna._native` that the executor uses."""

    def Program(self, variant: str, group: int = 0) -> Program: ...

    def a8_row_bytes(self, cols: int) -> int: ...


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What loading made.

    Attributes:
        num_weights: Matrices and vectors.
        source_bytes: Bytes of the weights as they are stored.
        packed_bytes: Bytes of the weights as the kernels read them; 0 for the reference executor.
        token_bytes: Activation memory per token of a step.
        request_bytes: Activation memory per request of a step.
        logit_row_bytes: Activation memory per row of `gather_variable`.
        num_instructions: Instructions that one step runs.
        pack_s: Seconds spent on reading and packing weights.
        lower_s: Seconds spent on everything else.
        content_id: The identity of the stored weights, a function of their names, formats, shapes and bytes; None for
            the reference executor.
        mapped_bytes: Those of `packed_bytes` that are mapped from a file: the system counts their memory as available.
    """

    num_weights: int
    source_bytes: int
    packed_bytes: int
    token_bytes: int
    request_bytes: int
    logit_row_bytes: int
    num_instructions: int
    pack_s: float
    lower_s: float
    content_id: str | None = None
    mapped_bytes: int = 0

    def activation_bytes(self, num_tokens: int, batch_size: int, num_logit_rows: int = 0) -> int:
        """Memory of the arena in a step of this size (rows are rounded up to 16)."""
        arena = ActivationMemory(self.token_bytes, self.request_bytes, self.logit_row_bytes)
        return arena.bytes_of(num_tokens, batch_size, num_logit_rows)


@dataclass(frozen=True, slots=True)
class ActivationMemory:
    """What a step needs beyond weights and cache; the fields are those of `LoadReport`."""

    token_bytes: int
    request_bytes: int
    logit_row_bytes: int

    def bytes_of(self, num_tokens: int, batch_size: int, num_logit_rows: int = 0) -> int:
        """Memory of the arena in a step of this size (rows are rounded up to 16)."""
        rows = [-(-count // 16) * 16 for count in (num_tokens, batch_size, num_logit_rows)]
        return rows[0] * self.token_bytes + rows[1] * self.request_bytes + rows[2] * self.logit_row_bytes


def plan_activations(graph: Graph, weights: Mapping[str, WeightData]) -> ActivationMemory:
    """The activation memory of a graph as it will run by default, from the formats of its weights alone."""
    from puna import _native

    plan = plan_memory(lower(graph, lambda name: str(_native.format_info(weights[name].format)[2])))
    return _arena(_native, plan)


def _arena(native: Native, plan: MemoryPlan) -> ActivationMemory:
    row_bytes = dict.fromkeys(("T", "B", "R"), 0)
    for slot in plan.slots:
        row_bytes[slot.rows] += slot_bytes(native, slot.kind, slot.width)
    return ActivationMemory(row_bytes["T"], row_bytes["B"], row_bytes["R"])


def emit_program(
    native: Native,
    program: Program,
    lowered: LoweredProgram,
    plan: MemoryPlan,
    weights: PackedWeights,
    adapters: AdapterSlots | None = None,
) -> None:
    """Write instructions, buffers, weights and adapter slots to a native program and freeze it."""
    if adapters is not None:
        program.adapters(adapters.native)
    _Emitter(native, program, plan).emit(lowered, weights)


class _Emitter:
    """Translates virtual buffers and weight names to the numbers that the native program gives out."""

    def __init__(self, native: Native, program: Program, plan: MemoryPlan) -> None:
        self.program = program
        self._slot_of = plan.slot_of
        self._buffers = [program.buffer(slot.rows, slot_bytes(native, slot.kind, slot.width)) for slot in plan.slots]
        self._ropes: dict[int, int] = {}

    def emit(self, lowered: LoweredProgram, weights: PackedWeights) -> None:
        for _, instruction in lowered.timeline():
            self._declare_rope(instruction)
        main_index = self._declare_weights(lowered.main, "", weights)
        bases: dict[CallInstruction, int] = {}
        for step in lowered.main.instructions:
            if isinstance(step, CallInstruction):
                names = self._declare_weights(step.function, step.prefix, weights)
                bases[step] = min(names.values(), default=0)
        subs: dict[Function, int] = {}
        for function in lowered.functions:
            self.program.begin_sub(function.name)
            index = {name: position for position, name in enumerate(function.weight_names)}
            for step in function.instructions:
                assert isinstance(step, Instruction)  # functions do not call functions
                self._emit(step, index)
            subs[function] = self.program.end_sub()
        for step in lowered.main.instructions:
            if isinstance(step, CallInstruction):
                self.program.emit("call", sub=subs[step.function], weight_base=bases[step], layer=step.layer)
            else:
                self._emit(step, main_index)
        self.program.finish()

    def _declare_rope(self, instruction: Instruction) -> None:
        rope = instruction.fields.get("rope")
        if instruction.op == "rope_angles" and id(rope) not in self._ropes:
            assert not isinstance(rope, int | float | str | bool | VirtualBuffer | WeightRef | tuple | None)
            kind, parameters = rope.spec()
            self._ropes[id(rope)] = self.program.rope(kind, dict(parameters))

    def _declare_weights(self, function: Function, prefix: str, weights: PackedWeights) -> dict[str, int]:
        """Numbers of a function's weights; those of one call are consecutive."""
        return {name: self.program.weight(weights[prefix + name]) for name in function.weight_names}

    def _emit(self, instruction: Instruction, weight_index: Mapping[str, int]) -> None:
        fields = {name: self._number(name, value, weight_index) for name, value in instruction.fields.items()}
        self.program.emit(instruction.op, **fields)

    def _number(self, name: str, value: FieldValue, weight_index: Mapping[str, int]) -> object:
        if name == "rope":
            return self._ropes[id(value)]
        if value is None:
            return -1
        if isinstance(value, VirtualBuffer):
            return self._buffers[self._slot_of[value]]
        if isinstance(value, WeightRef):
            return weight_index[value.name]
        if isinstance(value, tuple):
            return [weight_index[part.name] if isinstance(part, WeightRef) else part for part in _filled(value)]
        return value


def _filled(parts: tuple[WeightRef | int | None, ...]) -> list[WeightRef | int]:
    return [-1 if part is None else part for part in parts]


def _label(call: CallInstruction | None, instruction: Instruction, weights: PackedWeights) -> dict[str, object]:
    """What a trace says about an instruction beyond its costs."""
    prefix = "" if call is None else call.prefix
    names = [prefix + weight.name for weight in instruction.weights]
    matrices = [weights.partner(name) for name in names if name in weights.matrices]
    is_int8 = instruction.op in ("matmul", "matmul_out") and "a8" in matrices
    short = [name.removeprefix(prefix).removesuffix(".weight") for name in names if name in weights.matrices]
    layer = instruction.fields.get("layer")
    own = layer if isinstance(layer, int) else 0 if call is not None else -1
    return {"name": " + ".join(short), "layer": own + (0 if call is None else call.layer), "is_int8": is_int8}


def slot_bytes(native: Native, kind: str, width: int) -> int:
    """Bytes of a row of a buffer."""
    if kind == "f32":
        return 4 * width
    return native.a8_row_bytes(width) * (2 if kind == "a8x2" else 1)


class NativeExecutor:
    """Runs a graph as one native call per step.

    Args:
        native: `puna._native`, or what stands in for it.
        graph: What to run.
        weights: Its weights by full name.
        precision: `"float32"` makes every product take float32 activations.
        variant: Which kernels.
        threads: How many threads work on a step.
        cache: Where packed weights are kept for later starts; None: nowhere.
        fuse: Whether neighbours become one instruction.
        packed: The weights as another executor has packed them.
        group: The group of cores that runs it.
        adapters: The adapters that its steps can name.
    """

    def __init__(
        self,
        native: Native,
        graph: Graph,
        weights: Mapping[str, WeightData],
        *,
        precision: Precision,
        variant: str,
        threads: int,
        cache: PackedCache | None = None,
        fuse: bool = True,
        packed: PackedWeights | None = None,
        group: int = 0,
        adapters: AdapterSlots | None = None,
    ) -> None:
        begin = time.perf_counter()
        self.packed = pack_weights(native, weights, precision, threads, cache) if packed is None else packed
        self._derive = partial(
            NativeExecutor,
            native,
            weights=weights,
            precision=precision,
            variant=variant,
            threads=threads,
            fuse=fuse,
            group=group,
        )
        packed_at = time.perf_counter()
        lowered = lower(graph, self.packed.partner, fuse=fuse)
        plan = plan_memory(lowered)
        self.program = native.Program(variant, group)
        emit_program(native, self.program, lowered, plan, self.packed, adapters)
        self._threads = threads
        self._labels = [_label(call, instruction, self.packed) for call, instruction in lowered.timeline()]
        arena = _arena(native, plan)
        self.report = LoadReport(
            num_weights=len(weights),
            source_bytes=sum(weight.nbytes for weight in weights.values()),
            packed_bytes=self.packed.nbytes,
            token_bytes=arena.token_bytes,
            request_bytes=arena.request_bytes,
            logit_row_bytes=arena.logit_row_bytes,
            num_instructions=len(self._labels),
            pack_s=packed_at - begin,
            lower_s=time.perf_counter() - packed_at,
            content_id=self.packed.content_id,
            mapped_bytes=self.packed.nbytes if self.packed.file is not None else 0,
        )

    def derive(self, graph: Graph, adapters: AdapterSlots | None = None) -> NativeExecutor:
        """The executor of another graph over the same packed weights, or some of them."""
        return self._derive(graph, packed=self.packed, adapters=adapters)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[Array]) -> None:
        """Compute all outputs in one native call. `kv_blocks` is written in place.

        Raises:
            ValueError: an input is not one that the program can run; the message names it.
            WeightsError: the file of the packed weights was cut; what was computed is of no use.
        """
        self.program.execute(dict(inputs), list(outputs), self._threads)
        self.packed.check()

    def set_tracing(self, is_on: bool) -> None:
        """Note times from the next run on, or no longer."""
        self.program.trace(is_on)

    def trace_records(self) -> Sequence[Mapping[str, Any]]:
        """What the instructions of the last run cost, in the order in which they ran."""
        records = [record for record in self.program.trace_records() if record["op"] != "call"]
        assert len(records) in (0, len(self._labels))  # none before the first run
        return [{**record, **label} for record, label in zip(records, self._labels, strict=False)]
