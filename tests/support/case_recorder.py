"""Writes a program, the inputs of a step and the bits that it gives to a file that csrc/tests/replay.cpp replays.

The format of the files is described in csrc/tests/case_file.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from puna import _native

Array = NDArray[Any]
_WRITTEN_TO = "kv_blocks"


class CaseRecorder:
    """A program that is built and written down at the same time.

    Args:
        variant: Whose bits are recorded.
    """

    def __init__(self, variant: str) -> None:
        self.program = _native.Program(variant)
        self._lines: list[str] = []
        self._data = bytearray()

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
        self._lines.append(f"matrix {format} {rows} {cols} {full} {self._blob(data)}")
        return self.program.weight(_native.PackedMatrix(format, data, rows, cols, precision, 1))

    def vector(self, values: Array) -> int:
        """A vector of float32 as weight."""
        values = values.astype(np.float32)
        self._lines.append(f"vector {self._blob(values)}")
        return self.program.weight(values)

    def rope(self, kind: str, parameters: Mapping[str, object]) -> int:
        """A rope specification."""
        self._lines.append(f"rope {kind} {self._fields(parameters)}")
        return self.program.rope(kind, parameters)

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
        self._lines.append(f"emit {op} {self._fields(fields)}")
        self.program.emit(op, **fields)

    def save(self, path: Path, inputs: Mapping[str, Array], outputs: list[Array]) -> None:
        """Execute, and write everything down; `outputs` are of the right types and shapes."""
        for name, array in inputs.items():
            self._lines.append(f"input {name} {self._array(array)}")
        before = {name: np.frombuffer(array.tobytes(), np.uint8) for name, array in inputs.items()}
        self.program.finish()
        self.program.execute(inputs, outputs, 1)
        for output in outputs:
            assert output.dtype.kind != "f" or np.isfinite(output).all(), "NaN has other bits on other machines"
            self._lines.append(f"output {self._array(output)}")
        if _WRITTEN_TO in inputs:
            now = np.frombuffer(inputs[_WRITTEN_TO].tobytes(), np.uint8)
            for begin, end in _ranges(np.flatnonzero(now != before[_WRITTEN_TO])):
                self._lines.append(f"change {_WRITTEN_TO} {begin} {self._blob(now[begin:end])}")
        self._lines.append(f"data {len(self._data)}")
        path.write_bytes("\n".join([*self._lines, ""]).encode() + bytes(self._data))

    def _blob(self, array: Array) -> str:
        content = np.ascontiguousarray(array).tobytes()
        begin = self._data.find(content) if len(content) > 16 else -1
        if begin < 0:
            begin = len(self._data)
            self._data += content
        return f"{begin}+{len(content)}"

    def _array(self, array: Array) -> str:
        name = "bfloat16" if array.dtype == ml_dtypes.bfloat16 else array.dtype.name
        return f"{name} {'x'.join(map(str, array.shape))} {self._blob(array)}"

    def _fields(self, fields: Mapping[str, object]) -> str:
        return " ".join(f"{name}={self._value(value)}" for name, value in fields.items())

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
            return f"a:{self._blob(value.astype(np.float32))}"
        assert isinstance(value, list)
        return "l:" + ",".join(map(str, value))


def _ranges(indices: Array) -> list[tuple[int, int]]:
    """Half-open ranges that cover ascending indices, those less than 16 apart together."""
    breaks = np.flatnonzero(np.diff(indices) >= 16) + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(indices, breaks) if part.size]
