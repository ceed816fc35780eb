"""Lists of strings in GGUF files: a vocabulary of 128k tokens with its merges is some 400 000 of them.

Each string is a 64-bit length and its UTF-8 bytes, so where one begins follows from all those before it. A list keeps
where each begins and decodes on demand; both steps are done for thousands of strings at a time.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Final, overload

import numpy as np

from puna.errors import WeightsError
from puna.graph.weights.mapping import MappedWeights

__all__ = ["StringList", "find_strings"]

_SEARCH_BYTES: Final = 1 << 16
_WALKED_STRINGS: Final = 1 << 10
_CHUNK: Final = 1 << 14
_SEPARATOR: Final = "\0" * 8
_LENGTH: Final = struct.Struct("<Q")


def find_strings(file: MappedWeights, key: str, position: int, count: int) -> array[int]:
    """Where each of `count` strings from `position` on begins, and where the last one ends.

    Raises:
        WeightsError: a string goes on after the end of the file.
    """
    starts = array("q")
    while len(starts) < count:
        found = _search(file, position)[: count - len(starts) + 1]
        if len(found) > 1:
            starts.frombytes(found[:-1].tobytes())
            position = int(found[-1])
        else:
            position = _walk(file, key, starts, position, count)
    starts.append(position)
    return starts


def _search(file: MappedWeights, position: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The starts of as many strings from `position` on as can be told at once, maybe none.

    A length below 256 is a byte followed by seven zeros, and text has no zeros. So the bytes before a zero are
    probably the starts; they are the starts for certain as long as each one's length leads exactly to the next.
    """
    window = file.array[position : position + _SEARCH_BYTES]
    if window.size < 16:
        return np.empty(0, np.int64)
    is_zero = window == 0
    probable = np.flatnonzero(is_zero[1:-6] & ~is_zero[:-7])
    if not probable.size or probable[0] != 0:
        return np.empty(0, np.int64)
    lengths = np.ndarray((window.size - 7,), "<u8", window, strides=(1,))[probable]
    leads_on = lengths[:-1] == np.diff(probable) - 8
    certain = int(leads_on.argmin()) if not leads_on.all() else leads_on.size
    return probable[: certain + 1] + position


def _walk(file: MappedWeights, key: str, starts: array[int], position: int, count: int) -> int:
    """Notes the starts of some strings one by one, whatever they hold; gives the position after them."""
    data, unpack, note = file.data, _LENGTH.unpack_from, starts.append
    try:
        for _ in range(min(_WALKED_STRINGS, count - len(starts))):
            note(position)
            position += 8 + unpack(data, position)[0]
        inside = position <= file.size
    except (struct.error, OverflowError):  # a position outside the file
        inside = False
    if not inside:
        while len(starts) > 1 and starts[-1] > file.size - 8:
            starts.pop()
        message = f"the file ends in or after string {len(starts) - 1} of the {count}"
        raise WeightsError(message, file=file.path, tensor=key, offset=starts[-1])
    return position


class StringList(Sequence[str]):
    """A list of strings in a GGUF file, decoded when they are asked for. `tolist` decodes all of them quickest.

    Raises (when decoding):
        WeightsError: a string is not UTF-8; the message names the key, the index and the byte.
    """

    __slots__ = ("_file", "_key", "_starts")

    def __init__(self, file: MappedWeights, key: str, starts: array[int]) -> None:
        self._file = file
        self._key = key
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"{self._key} has {len(self)} strings, number {index} is asked for")
        return self._decode(number)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    def tolist(self) -> list[str]:
        """All strings.

        Raises:
            WeightsError: one of them is not UTF-8, or the file became shorter.
        """
        texts: list[str] = []
        for begin in range(0, len(self), _CHUNK):
            texts += self._decode_range(begin, min(begin + _CHUNK, len(self)))
        self._file.check(self._key)
        return texts

    def _decode_range(self, begin: int, end: int) -> list[str]:
        starts = np.frombuffer(self._starts, np.int64)[begin : end + 1]
        raw = self._file.array[starts[0] : starts[-1]].copy()
        # Zeros in place of each length make separators, and one decoding serves all strings, unless one holds a zero.
        lengths = starts[:-1, None] - starts[0] + np.arange(8)
        raw[lengths] = 0
        if np.count_nonzero(raw == 0) == lengths.size:
            try:
                return raw.tobytes().decode().split(_SEPARATOR)[1:]
            except UnicodeDecodeError:
                pass  # the string to blame is found below
        return [self._decode(number) for number in range(begin, end)]

    def _decode(self, number: int) -> str:
        begin, end = self._starts[number] + 8, self._starts[number + 1]
        try:
            text = bytes(self._file.data[begin:end]).decode()
        except UnicodeDecodeError as error:
            message = f"string {number} is not UTF-8"
            raise WeightsError(message, file=self._file.path, tensor=self._key, offset=begin) from error
        self._file.check(self._key)
        return text

    def __repr__(self) -> str:
        return f"StringList({self._key!r}, {len(self)} strings)"
