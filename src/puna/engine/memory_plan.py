"""Where virtual buffers lie: those that are never alive at the same time share memory.

Time is the position of an instruction when all calls are written out. A buffer that only one function mentions lives
anew in every run of it, from its first to its last mention; any other lives from its first mention to its last one. Two
buffers may share a slot if they have the same rows and the same kind and none of their lives overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from puna.engine.instructions import BufferKind, CallInstruction, Function, LoweredProgram, RowClass, VirtualBuffer

__all__ = ["MemoryPlan", "Slot", "live_ranges", "plan_memory"]


@dataclass(frozen=True, slots=True)
class Slot:
    """One physical buffer: as wide as the widest of the virtual buffers that share it."""

    rows: RowClass
    kind: BufferKind
    width: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The slots of the arena, and the slot of each virtual buffer."""

    slots: tuple[Slot, ...]
    slot_of: Mapping[VirtualBuffer, int]


def live_ranges(program: LoweredProgram) -> dict[VirtualBuffer, list[tuple[int, int]]]:
    """First and last mention of each virtual buffer, once per life, in ascending order."""
    mentions: dict[VirtualBuffer, list[tuple[CallInstruction | None, int]]] = {}
    functions: dict[VirtualBuffer, set[Function]] = {}
    for position, (call, instruction) in enumerate(program.timeline()):
        for buffer in (*instruction.reads, *instruction.writes):
            mentions.setdefault(buffer, []).append((call, position))
            functions.setdefault(buffer, set()).add(program.main if call is None else call.function)
    ranges: dict[VirtualBuffer, list[tuple[int, int]]] = {}
    for buffer, seen in mentions.items():
        is_local = len(functions[buffer]) == 1
        lives: dict[CallInstruction | None, tuple[int, int]] = {}
        for call, position in seen:
            key = call if is_local else None
            begin, _ = lives.get(key, (position, position))
            lives[key] = (begin, position)
        ranges[buffer] = list(lives.values())
    return ranges


def plan_memory(program: LoweredProgram) -> MemoryPlan:
    """Lay out the arena: widest buffers first, each into the first slot where it fits."""
    ranges = live_ranges(program)
    members: list[list[VirtualBuffer]] = []
    slots: list[Slot] = []
    slot_of: dict[VirtualBuffer, int] = {}
    order = sorted(ranges, key=lambda buffer: (-buffer.width, ranges[buffer][0]))
    for buffer in order:
        for index, slot in enumerate(slots):
            if (slot.rows, slot.kind) == (buffer.rows, buffer.kind) and not any(
                _overlap(ranges[buffer], ranges[other]) for other in members[index]
            ):
                break
        else:
            index = len(slots)
            slots.append(Slot(buffer.rows, buffer.kind, buffer.width))
            members.append([])
        members[index].append(buffer)
        slot_of[buffer] = index
    return MemoryPlan(tuple(slots), slot_of)


def _overlap(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> bool:
    i = j = 0
    while i < len(first) and j < len(second):
        if first[i][1] < second[j][0]:
            i += 1
        elif second[j][1] < first[i][0]:
            j += 1
        else:
            return True
    return False
