"""The key-value part of a GGUF file.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
from types import MappingProxyType
from typing import Any, Final, NoReturn

import numpy as np

from puna.errors import WeightsError
from puna.graph.weights.mapping import MappedWeights
from puna.graph.weights.string_list import StringList, find_strings

__all__ = ["Cursor", "read_metadata"]

MAX_KEYS: Final = 1 << 16
MAX_KEY_BYTES: Final = 65_535
MAX_METADATA_BYTES: Final = 1 << 27
MAX_LISTS: Final = 1 << 16
MAX_STRINGS: Final = 1 << 22
MAX_DEPTH: Final = 4

_BOOL: Final = 7
_STRING: Final = 8
_LIST: Final = 9
_SCALARS: Final = MappingProxyType({
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    _BOOL: struct.Struct("<B"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
})
_LIST_DTYPES: Final = MappingProxyType({
    kind: np.dtype(scalar.format).newbyteorder("=") for kind, scalar in _SCALARS.items()
})
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


class Cursor:
    """A position in a GGUF file that never passes its end."""

    __slots__ = ("file", "position")

    def __init__(self, file: MappedWeights) -> None:
        self.file = file
        self.position = 0

    def fail(self, message: str, *, name: str | None = None, at: int | None = None) -> NoReturn:
        """Raises WeightsError at a byte of the file, the current one unless told otherwise."""
        offset = self.position if at is None else at
        raise WeightsError(message, file=self.file.path, tensor=name, offset=offset)

    def left(self) -> int:
        """Bytes from here to the end of the file."""
        return self.file.size - self.position

    def scalar(self, kind: struct.Struct, what: str, name: str | None = None) -> Any:
        """Passes one number."""
        if self.left() < kind.size:
            self.fail(f"the file ends inside {what}", name=name)
        (value,) = kind.unpack_from(self.file.data, self.position)
        self.position += kind.size
        return value

    def u32(self, what: str, name: str | None = None) -> int:
        """Passes an unsigned 32-bit number."""
        return int(self.scalar(_U32, what, name))

    def u64(self, what: str, name: str | None = None) -> int:
        """Passes an unsigned 64-bit number."""
        return int(self.scalar(_U64, what, name))

    def string(self, what: str, name: str | None = None, max_bytes: int = MAX_METADATA_BYTES) -> str:
        """Passes a string: 64-bit length, UTF-8 bytes."""
        at = self.position
        length = self.u64(f"the length of {what}", name)
        if length > self.left():
            self.fail(f"{what} is said to have {length} bytes, the file has {self.left()} more", name=name, at=at)
        if length > max_bytes:
            self.fail(f"{what} has {length} bytes; at most {max_bytes} are read", name=name, at=at)
        raw = bytes(self.file.data[self.position : self.position + length])
        self.position += length
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8", name=name, at=at + 8)


def read_metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    """Passes `count` key-value pairs.

    Numbers become `int`, `float` or `bool`, strings `str`, lists of numbers read-only NumPy arrays of their own type,
    lists of strings `StringList`, lists of lists tuples of those.

    Raises:
        WeightsError: a length, a type or a key breaks the format.
    """
    if count > min(MAX_KEYS, cursor.left() // 13):  # the least pair: an empty key, a type, one byte
        cursor.fail(f"the file is said to have {count} metadata keys; it has {cursor.left()} bytes left", at=16)
    reader = _Values(cursor)
    metadata: dict[str, Any] = {}
    for _ in range(count):
        at = cursor.position
        key = cursor.string("a metadata key", max_bytes=MAX_KEY_BYTES)
        if key in metadata:
            cursor.fail("the key is there twice", name=key, at=at)
        metadata[key] = reader.value(key)
        if cursor.position > MAX_METADATA_BYTES:
            cursor.fail(f"the metadata goes on after {MAX_METADATA_BYTES} bytes", name=key)
    return metadata


class _Values:
    """Reads values of every type, and counts lists and their strings."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self.lists = 0
        self.strings = 0

    def value(self, key: str) -> Any:
        at = self.cursor.position
        kind = self.cursor.u32("a value's type", key)
        if kind == _STRING:
            return self.cursor.string("the value", key)
        if kind == _LIST:
            return self.list(key, 1)
        scalar = _SCALARS.get(kind)
        if scalar is None:
            self.cursor.fail(f"value type {kind} is unknown", name=key, at=at)
        value = self.cursor.scalar(scalar, "the value", key)
        if kind == _BOOL:
            if value > 1:
                self.cursor.fail(f"a bool is 0 or 1, not {value}", name=key, at=at + 4)
            return bool(value)
        return value

    def list(self, key: str, depth: int) -> Any:
        cursor, at = self.cursor, self.cursor.position
        self.lists += 1
        if depth > MAX_DEPTH or self.lists > MAX_LISTS:
            message = f"there are more than {MAX_LISTS} lists or they are nested more than {MAX_DEPTH} deep"
            cursor.fail(message, name=key)
        kind = cursor.u32("a list's type", key)
        count = cursor.u64("a list's length", key)
        dtype = _LIST_DTYPES.get(kind)
        if dtype is None and kind not in (_STRING, _LIST):
            cursor.fail(f"list type {kind} is unknown", name=key, at=at)
        least = dtype.itemsize if dtype is not None else 8 if kind == _STRING else 12
        if count * least > min(cursor.left(), MAX_METADATA_BYTES):
            message = f"the list is said to have {count} elements of {least} or more bytes; {cursor.left()} are left"
            cursor.fail(message, name=key, at=at + 4)
        if dtype is not None:
            return self.numbers(key, kind, dtype, count)
        if kind == _STRING:
            return self.texts(key, count)
        return tuple(self.list(key, depth + 1) for _ in range(count))

    def numbers(self, key: str, kind: int, dtype: np.dtype[Any], count: int) -> np.ndarray[Any, Any]:
        cursor = self.cursor
        end = cursor.position + count * dtype.itemsize
        values = cursor.file.array[cursor.position : end].copy().view(dtype)
        if kind == _BOOL:
            wrong = np.flatnonzero(values > 1)
            if wrong.size:
                cursor.fail(f"a bool is 0 or 1, not {values[wrong[0]]}", name=key, at=cursor.position + int(wrong[0]))
            values = values.astype(np.bool_)
        values.flags.writeable = False
        cursor.position = end
        return values

    def texts(self, key: str, count: int) -> StringList:
        cursor = self.cursor
        self.strings += count
        if self.strings > MAX_STRINGS:
            cursor.fail(f"there are more than {MAX_STRINGS} strings in lists", name=key)
        starts = find_strings(cursor.file, key, cursor.position, count)
        cursor.position = starts[-1]
        if cursor.position > MAX_METADATA_BYTES:
            cursor.fail(f"the metadata goes on after {MAX_METADATA_BYTES} bytes", name=key)
        return StringList(cursor.file, key, starts)
