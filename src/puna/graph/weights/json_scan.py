"""A strict reader of small JSON grammars in untrusted bytes.

The usual parsers build every value that a file holds before anyone can look at it: a 100 MB header of `[],[],[]`
becomes gigabytes of objects. This one is driven by the grammar that the caller expects, keeps nothing that the caller
does not take, and names the byte at which the text leaves the grammar.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

from puna.errors import WeightsError

__all__ = ["JsonScanner"]

MAX_STRING_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32

_SPACE: Final = re.compile(rb"[ \t\r\n]*+")
_PLAIN: Final = re.compile(rb'[^"\\\x00-\x1f]*+')
_ESCAPE: Final = re.compile(rb'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_INTEGER: Final = re.compile(rb"(?:0|[1-9][0-9]{0,18})(?![0-9.eE])")
_ATOM: Final = re.compile(rb"true|false|null|-?(?:0|[1-9][0-9]{0,40})(?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,9})?")


class JsonScanner:
    """A cursor over the bytes `begin:end` of a file.

    Args:
        data: the file.
        begin: first byte of the text.
        end: byte after its last.
        path: the file, for messages.
    """

    __slots__ = ("_path", "data", "end", "position")

    def __init__(self, data: memoryview, begin: int, end: int, path: Path) -> None:
        self.data = data
        self.position = begin
        self.end = end
        self._path = path

    def fail(self, message: str, *, tensor: str | None = None, at: int | None = None) -> NoReturn:
        """Raises WeightsError at a byte of the file, the current one unless told otherwise."""
        offset = self.position if at is None else at
        raise WeightsError(message, file=self._path, tensor=tensor, offset=offset)

    def peek(self) -> int:
        """The next byte that is no white space; 0 at the end."""
        match = _SPACE.match(self.data, self.position, self.end)
        assert match is not None
        self.position = match.end()
        return self.data[self.position] if self.position < self.end else 0

    def expect(self, byte: bytes) -> None:
        """Passes one punctuation byte."""
        found = self.peek()
        if found != byte[0]:
            self.fail(f"{byte.decode()!r} is expected, " + (f"{chr(found)!r} is there" if found else "the text ends"))
        self.position += 1

    def string(self, max_bytes: int = MAX_STRING_BYTES) -> str:
        """Passes a string and returns it."""
        self.expect(b'"')
        begin = self.position
        while True:
            match = _PLAIN.match(self.data, self.position, self.end)
            assert match is not None
            self.position = match.end()
            if self.position - begin > max_bytes:
                self.fail(f"the string has more than {max_bytes} bytes", at=begin)
            escape = _ESCAPE.match(self.data, self.position, self.end)
            if escape is None:
                break
            self.position = escape.end()
        raw = bytes(self.data[begin : self.position])
        self.expect_quote()
        try:
            text = raw.decode()
            if "\\" in text:
                text = str(json.loads(f'"{text}"'))
                text.encode()  # half a surrogate pair can be escaped but is no character
        except UnicodeError:
            self.fail("the string is not UTF-8", at=begin)
        return text

    def expect_quote(self) -> None:
        """Passes the quote that ends a string."""
        if self.position >= self.end or self.data[self.position] != 0x22:
            self.fail("the string is not closed, or has a control character or a wrong escape")
        self.position += 1

    def integer(self) -> int:
        """Passes a whole number of at most 19 digits, without sign, and returns it."""
        self.peek()
        match = _INTEGER.match(self.data, self.position, self.end)
        if match is None:
            self.fail("a whole number is expected")
        self.position = match.end()
        return int(match[0])

    def integers(self, max_count: int) -> tuple[int, ...]:
        """Passes a list of whole numbers and returns it."""
        values: list[int] = []
        for _ in self.items():
            if len(values) == max_count:
                self.fail(f"the list has more than {max_count} numbers")
            values.append(self.integer())
        return tuple(values)

    def items(self) -> Iterator[None]:
        """Stops at each value of a list; the caller passes it."""
        self.expect(b"[")
        if self.peek() == 0x5D:
            self.position += 1
            return
        while True:
            yield
            if self.peek() != 0x2C:
                break
            self.position += 1
        self.expect(b"]")

    def members(self, max_count: int) -> Iterator[str]:
        """Stops at the value of each member of an object and gives its key; the caller passes the value."""
        self.expect(b"{")
        if self.peek() == 0x7D:
            self.position += 1
            return
        seen: set[str] = set()
        while True:
            self.peek()
            at = self.position
            key = self.string()
            if key in seen:
                self.fail(f"the key {key!r} is there twice", at=at)
            if len(seen) == max_count:
                self.fail(f"the object has more than {max_count} members", at=at)
            seen.add(key)
            self.expect(b":")
            yield key
            if self.peek() != 0x2C:
                break
            self.position += 1
        self.expect(b"}")

    def skip(self, depth: int = 0) -> None:
        """Passes any value, nested at most 32 deep."""
        if depth > MAX_DEPTH:
            self.fail(f"the text is nested more than {MAX_DEPTH} deep")
        first = self.peek()
        if first == 0x7B:
            for _ in self.members(1 << 20):
                self.skip(depth + 1)
        elif first == 0x5B:
            for _ in self.items():
                self.skip(depth + 1)
        elif first == 0x22:
            self.string()
        else:
            match = _ATOM.match(self.data, self.position, self.end)
            if match is None:
                self.fail("a value is expected")
            self.position = match.end()

    def finish(self) -> None:
        """Checks that nothing but white space follows."""
        if self.peek() or self.position < self.end:
            self.fail("the text goes on after its end")
