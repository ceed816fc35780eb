"""Reads and writes the files that csrc/tests/replay.cpp replays: programs with their bits, and calls of single kernels.

The format is described in csrc/tests/case_file.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from puna import _native

Array = NDArray[Any]
_WRITTEN_TO = "kv_blocks"


@dataclass(frozen=True)
class Call:
    """A call of a kernel: operands, and the bits of what it gives.

    Attributes:
        op: Its name.
        fields: Integers, floats, flags, texts, lists of integers, and float32 or uint8 arrays (flat when read).
    """

    op: str
    fields: dict[str, Any]


class _Data:
    """The bytes behind the lines of a file; what is there already is not written again."""

    def __init__(self) -> None:
        self.content = bytearray()
        self._places: dict[bytes, int] = {}

    def blob(self, array: Array) -> str:
        content = np.ascontiguousarray(array).tobytes()
        begin = self._places.setdefault(content, len(self.content))
        if begin == len(self.content):
            self.content += content
        return f"{begin}+{len(content)}"

    def line(self, words: str, fields: Mapping[str, object]) -> str:
        return " ".join([words, *(f"{name}={self._value(value)}" for name, value in fields.items())])

    def _value(self, value: object) -> str:
        if isinstance(value, bool):
            return f"b:{int(value)}"
        if isinstance(value, int):
            return f"i:{value}"
        if isinstance(value, float):
            return f"f:{value.hex()}"
        if isinstance(value, str):
            return f"s:{value}"
        if isinstance(value, np.ndarray):
            return f"{'u' if value.dtype == np.uint8 else 'a'}:{self.blob(value)}"
        assert isinstance(value, list)
        return "l:" + ",".join(map(str, value))

    def save(self, path: Path, lines: list[str]) -> None:
        text = "\n".join([*lines, f"data {len(self.content)}", ""])
        path.write_bytes(text.encode() + bytes(self.content))


def write_calls(path: Path, calls: list[Call]) -> None:
    """Write calls of kernels to a file."""
    data = _Data()
    data.save(path, [data.line(f"kernel {call.op}", call.fields) for call in calls])


def read_calls(path: Path) -> list[Call]:
    """The calls of a file; none when it holds a program."""
    text, _, rest = path.read_bytes().partition(b"\ndata ")
    data = rest.partition(b"\n")[2]
    calls = []
    for line in text.decode().splitlines():
        word, *words = line.split(" ")
        if word == "kernel":
            pairs = (field.split("=", 1) for field in words[1:])
            calls.append(Call(words[0], {name: _parsed(value, data) for name, value in pairs}))
    return calls


def _parsed(text: str, data: bytes) -> Any:
    kind, value = text[0], text[2:]
    if kind in "au":
        begin, size = map(int, value.split("+"))
        return np.frombuffer(data[begin : begin + size], np.float32 if kind == "a" else np.uint8)
    if kind == "l":
        return [int(part) for part in value.split(",")]
    return {"i": int, "f": float.fromhex, "b": "1".__eq__, "s": str}[kind](value)


class CaseRecorder:
    """A program that is built and written down at the same time.

    Args:
        variant: Whose bits are recorded.
    """

    def __init__(self, variant: str) -> None:
        self.program = _native.Program(variant)
        self._lines: list[str] = []
        self._data = _Data()

    def buffer(self, width: int, rows: str = "T") -> int:
        """A float32 buffer of `width` columns."""
        return self._buffer(rows, 4 * width)

    def codes(self, width: int, rows: str = "T", terms: int = 1) -> int:
        """An int8 buffer."""
        return self._buffer(rows, terms * _native.a8_row_bytes(width))

    def _buffer(self, rows: str, row_bytes: int) -> int:
        self._lines.append(f"buffer {rows} {row_bytes}")
        return self.program.buffer(rows, row_bytes)  # type: ignore[arg-type]

    def matrix(self, format: str, data: Array, rows: int, cols: int, *, precision: str = "auto") -> int:
        """A packed matrix as weight."""
        full = "full" if precision == "float32" else "auto"
        self._lines.append(f"matrix {format} {rows} {cols} {full} {self._data.blob(data)}")
        return self.program.weight(_native.PackedMatrix(format, data, rows, cols, precision, 1))

    def vector(self, values: Array) -> int:
        """A vector of float32 as weight."""
        values = values.astype(np.float32)
        self._lines.append(f"vector {self._data.blob(values)}")
        return self.program.weight(values)

    def rope(self, kind: str, parameters: Mapping[str, object]) -> int:
        """A rope specification."""
        self._lines.append(self._data.line(f"rope {kind}", parameters))
        return self.program.rope(kind, parameters)

    def slots(self, adapters: list[_native.Adapter]) -> None:
        """Slots that hold these adapters, whose updates are written down by `update`."""
        self._lines.append(f"slots {len(adapters)}")
        slots = _native.AdapterSlots(len(adapters))
        for slot, adapter in enumerate(adapters):
            slots.set(slot, adapter)
        self.program.adapters(slots)

    def update(
        self, adapter: _native.Adapter, slot: int, layer: int, target: int, parts: list[tuple[str, Array]], scale: float
    ) -> None:
        """An update of the adapter that is in a slot; its parts A and B are a format and stored rows each."""
        words, packed = [], []
        for format, data in parts:
            rows, cols = data.shape
            words.append(f"{format} {rows} {cols} {self._data.blob(data)}")
            packed.append(_native.PackedMatrix(format, data, rows, cols, "float32", 1))
        self._lines.append(f"update {slot} {layer} {target} {float(np.float32(scale)).hex()} {' '.join(words)}")
        adapter.set(layer, target, packed[0], packed[1], scale)

    def begin_sub(self, name: str) -> None:
        """Begin a subprogram."""
        self._lines.append(f"begin_sub {name}")
        self.program.begin_sub(name)

    def end_sub(self) -> int:
        """End it."""
        self._lines.append("end_sub")
        return self.program.end_sub()

    def emit(self, op: str, **fields: object) -> None:
        """Append an instruction."""
        self._lines.append(self._data.line(f"emit {op}", fields))
        self.program.emit(op, **fields)

    def save(self, path: Path, inputs: Mapping[str, Array], outputs: list[Array]) -> None:
        """Execute, and write everything down; `outputs` are of the right types and shapes."""
        for name, array in inputs.items():
            self._lines.append(f"input {name} {self._array(array)}")
        before = {name: np.frombuffer(array.tobytes(), np.uint8) for name, array in inputs.items()}
        self.program.finish()
        self.program.execute(inputs, outputs, 1)
        for output in outputs:
            self._lines.append(f"output {self._array(output)}")
        if _WRITTEN_TO in inputs:
            now = np.frombuffer(inputs[_WRITTEN_TO].tobytes(), np.uint8)
            for begin, end in _ranges(np.flatnonzero(now != before[_WRITTEN_TO])):
                self._lines.append(f"change {_WRITTEN_TO} {begin} {self._data.blob(now[begin:end])}")
        self._data.save(path, self._lines)

    def _array(self, array: Array) -> str:
        name = "bfloat16" if array.dtype == ml_dtypes.bfloat16 else array.dtype.name
        return f"{name} {'x'.join(map(str, array.shape))} {self._data.blob(array)}"


def _ranges(indices: Array) -> list[tuple[int, int]]:
    """Half-open ranges that cover ascending indices, those less than 16 apart together."""
    breaks = np.flatnonzero(np.diff(indices) >= 16) + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(indices, breaks) if part.size]
