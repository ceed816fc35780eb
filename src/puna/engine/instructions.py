"""The flat program before memory is planned: instructions over virtual buffers.

A virtual buffer is as wide as what is written to it and lives as long as it is mentioned; `memory_plan` lays several of
them into one piece of the arena. Instructions are those of `puna._native.Program`, one line each in `OPERANDS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, TypeAlias

from puna.graph.ops.attention import RopeSpec

__all__ = [
    "OPERANDS",
    "BufferKind",
    "Function",
    "Instruction",
    "LoweredProgram",
    "Operands",
    "RowClass",
    "VirtualBuffer",
    "WeightRef",
]

RowClass: TypeAlias = Literal["T", "B", "R"]
"""How many rows a buffer has: tokens of the step, requests, or rows of `gather_variable`."""
BufferKind: TypeAlias = Literal["f32", "a8", "a8x2"]
"""float32; codes of 8 bits, a scale and a sum per 32; or two rows of codes, the second of what the first leave."""


@dataclass(frozen=True, slots=True, eq=False)
class VirtualBuffer:
    """Rows of `width` elements. Equal only to itself."""

    rows: RowClass
    width: int
    kind: BufferKind
    name: str


@dataclass(frozen=True, slots=True)
class WeightRef:
    """A weight by its name within the function that uses it."""

    name: str


class Operands(NamedTuple):
    """Fields of an instruction that name buffers: those it reads, and those it writes."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]


OPERANDS: Final[Mapping[str, Operands]] = MappingProxyType(
    {
        "embed": Operands((), ("out",)),
        "norm": Operands(("x",), ("out", "out_a8")),
        "head_norm": Operands(("x",), ("x",)),
        "quantize": Operands(("x",), ("out_a8",)),
        "matmul": Operands(("x", "residual"), ("out",)),
        "matmul_out": Operands(("x",), ()),
        "glu": Operands(("x",), ("out", "out_a8")),
        "lora": Operands(("x", "out"), ("out", "low")),
        "lora_embed": Operands(("out",), ("out", "low")),
        "rope_angles": Operands((), ("out",)),
        "rope_kv": Operands(("x", "angles"), ("x",)),
        "attention": Operands(("x",), ("out",)),
        "gather_rows": Operands(("x",), ("out",)),
        "add": Operands(("a", "b"), ("out",)),
        "scale": Operands(("x",), ("out",)),
        "softcap": Operands(("x",), ("x",)),
        "clamp": Operands(("x",), ("x",)),
        "copy": Operands(("x",), ("out",)),
        "copy_out": Operands(("x",), ()),
        "offsets_out": Operands((), ()),
    }
)

FieldValue: TypeAlias = (
    "int | float | str | bool | VirtualBuffer | WeightRef"
    " | tuple[WeightRef | None, ...] | tuple[int, ...] | RopeSpec | None"
)


@dataclass(frozen=True, slots=True, eq=False)
class Instruction:
    """One instruction: its fields are numbers, buffers, weights; None where an optional operand is absent."""

    op: str
    fields: Mapping[str, FieldValue]

    @property
    def reads(self) -> tuple[VirtualBuffer, ...]:
        """Buffers whose contents matter to it."""
        return self._buffers(OPERANDS[self.op].reads)

    @property
    def writes(self) -> tuple[VirtualBuffer, ...]:
        """Buffers that it changes."""
        return self._buffers(OPERANDS[self.op].writes)

    @property
    def weights(self) -> tuple[WeightRef, ...]:
        """Weights that it reads, in the order of its fields."""
        found: list[WeightRef] = []
        for value in self.fields.values():
            if isinstance(value, WeightRef):
                found.append(value)
            elif isinstance(value, tuple):
                found.extend(part for part in value if isinstance(part, WeightRef))
        return tuple(found)

    def _buffers(self, names: tuple[str, ...]) -> tuple[VirtualBuffer, ...]:
        values = (self.fields[name] for name in names)
        return tuple(value for value in values if isinstance(value, VirtualBuffer))


@dataclass(frozen=True, slots=True, eq=False)
class CallInstruction:
    """A run of another function with the weights of one prefix and the cache of one layer."""

    function: Function
    prefix: str
    layer: int


@dataclass(slots=True, eq=False)
class Function:
    """A straight list of instructions. Its buffers are the program's: a call passes nothing."""

    name: str
    instructions: list[Instruction | CallInstruction] = field(default_factory=list)

    @property
    def weight_names(self) -> tuple[str, ...]:
        """The weights that its own instructions read, each once, in order of first use."""
        names: dict[str, None] = {}
        for instruction in self.instructions:
            if isinstance(instruction, Instruction):
                names.update((weight.name, None) for weight in instruction.weights)
        return tuple(names)


@dataclass(frozen=True, slots=True, eq=False)
class LoweredProgram:
    """A main function and the functions that it calls."""

    main: Function
    functions: tuple[Function, ...]

    def timeline(self) -> Iterator[tuple[CallInstruction | None, Instruction]]:
        """Every instruction in the order in which it runs, with the call that it is part of (None: none)."""
        for instruction in self.main.instructions:
            if isinstance(instruction, CallInstruction):
                for inner in instruction.function.instructions:
                    assert isinstance(inner, Instruction)  # functions do not call functions
                    yield instruction, inner
            else:
                yield None, instruction
