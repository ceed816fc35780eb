"""Regular expressions of JSON schemas, read so that every validator agrees.

A schema's `pattern` is ECMA-262's; validators read it with what their language has, and the grammar's engine is a third
one. What all of them read alike is served, in a spelling that means the common part: `\\d` are the ASCII digits, `\\D`
whatever no dialect calls a digit. The rest is refused: a text that one of them takes might be refused by another.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["PatternError", "is_unnamed_control", "portable_pattern"]

_HEX: Final = re.compile(r"x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}")
_COUNT: Final = re.compile(r"\{(\d+)(,(\d*))?\}")
_CONTROLS: Final = frozenset("nrtf")
_PUNCTUATION: Final = frozenset(r"^$\.*+?()[]{}|/-")
_MAX_COUNT: Final = 10_000
_MAX_DEPTH: Final = 32

_NARROW: Final = {"d": "0-9", "w": "0-9A-Za-z_", "s": r" \t\n\r\x0B\x0C"}
"""What every dialect counts to a class."""

_WIDE: Final = {"d": r"0-9\p{Nd}", "w": r"_\p{L}\p{N}", "s": r"\s\x1C-\x1F\x{FEFF}"}
"""What any dialect counts to it."""

_ANY: Final = r"[^\n\r\x{2028}\x{2029}]"


class PatternError(ValueError):
    """An expression that is not served."""


def is_unnamed_control(character: str) -> bool:
    """Whether it is a control character without an escape of its own in JSON: the grammar's engine loses it."""
    return (character < " " and character not in "\b\t\n\f\r") or character == "\x7f"


def portable_pattern(pattern: str) -> str:
    """The expression in a spelling that matches only what every dialect matches.

    Raises:
        PatternError: it is damaged, or has parts that dialects read differently.
    """
    return _Translation(pattern).text


class _Translation:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._place = 0
        parts: list[str] = []
        depth = 0
        may_repeat = False
        while self._place < len(pattern):
            character = pattern[self._place]
            if character == "\\":
                parts.append(self._escape())
                may_repeat = True
            elif character == "[":
                parts.append(self._character_class())
                may_repeat = True
            elif character == "(":
                parts.append(self._opening())
                depth += 1
                if depth > _MAX_DEPTH:
                    raise PatternError(f"groups are nested deeper than {_MAX_DEPTH}")
                may_repeat = False
            elif character in "*+?{":
                if not may_repeat:
                    raise PatternError(f"{character!r} repeats nothing")
                parts.append(self._repetition())
                may_repeat = False
            elif character in "]}":
                raise PatternError(f"{character!r} must be written as '\\{character}'")
            else:
                self._check_character(character)
                depth -= character == ")"
                if depth < 0:
                    raise PatternError("a ) closes no group")
                parts.append(_ANY if character == "." else character)
                may_repeat = character not in "^$|"
                self._place += 1
        if depth:
            raise PatternError("a group is not closed")
        self.text = "".join(parts)

    def _opening(self) -> str:
        found = "(?:" if self._pattern.startswith("(?:", self._place) else "("
        if found == "(" and self._pattern.startswith("(?", self._place):
            raise PatternError(
                f"{self._pattern[self._place : self._place + 3]!r} is not supported: look-around, names and flags "
                "differ by dialect"
            )
        self._place += len(found)
        return "(?:"

    def _escape(self) -> str:
        """An escape outside of classes."""
        name = self._pattern[self._place + 1 : self._place + 2]
        if name in _NARROW:
            text = f"[{_NARROW[name]}]"
        elif name and name.lower() in _WIDE:
            text = f"[^{_WIDE[name.lower()]}]"
        else:
            return self._character()
        self._place += 2
        return text

    @staticmethod
    def _check_character(character: str, is_range: bool = False) -> None:
        if "\ud800" <= character <= "\udfff":
            raise PatternError(f"U+{ord(character):04X} is half of a surrogate pair")
        if is_unnamed_control(character) and not is_range:
            raise PatternError(f"the control character U+{ord(character):04X} is supported as part of a range only")

    def _character(self, is_negated: bool = False) -> str:
        """An escape that stands for one character."""
        name = self._pattern[self._place + 1 : self._place + 2]
        if code := _HEX.match(self._pattern, self._place + 1):
            number = int(code[0][1:], 16)
            self._place += 1 + len(code[0])
            self._check_character(chr(number), is_range=is_negated or self._pattern.startswith("-", self._place))
            return rf"\x{{{number:X}}}"
        if not name:
            raise PatternError("ends with a backslash")
        if name not in _CONTROLS and name not in _PUNCTUATION:
            raise PatternError(f"\\{name} is not supported")
        self._place += 2
        return rf"\{name}"

    def _character_class(self) -> str:
        self._place += 1
        is_negated = self._pattern.startswith("^", self._place)
        self._place += is_negated
        named = _WIDE if is_negated else _NARROW
        parts: list[str] = []
        while self._place < len(self._pattern):
            character = self._pattern[self._place]
            pair = self._pattern[self._place : self._place + 2]
            if character == "]":
                if not parts:
                    raise PatternError("an empty class matches nothing")
                self._place += 1
                return f"[{'^' if is_negated else ''}{''.join(parts)}]"
            if character == "\\":
                if pair[1:] in named:
                    parts.append(named[pair[1:]])
                    self._place += 2
                elif pair[1:].lower() in named:
                    raise PatternError(f"{pair} in a class is not supported")
                else:
                    part = self._character(is_negated or parts[-1:] == ["-"])
                    if parts[-2:] == [part, "-"]:
                        raise PatternError(f"a range from {part} to itself is not supported")
                    parts.append(part)
                continue
            if character == "[":
                raise PatternError("'[' in a class must be written as '\\['")
            if pair in ("&&", "--", "~~"):
                raise PatternError(f"{pair!r} in a class differs by dialect")
            self._check_character(character, is_range=is_negated or pair[1:] == "-")
            parts.append(character if character != "^" else "\\^")
            self._place += 1
        raise PatternError("a class is not closed")

    def _repetition(self) -> str:
        begin, length = self._place, 1
        if self._pattern[begin] == "{":
            count = _COUNT.match(self._pattern, begin)
            if count is None:
                raise PatternError("'{' must be written as '\\{', or as {n}, {n,} or {n,m}")
            if len(count[0]) > 12 or max(int(count[1]), int(count[3] or 0)) > _MAX_COUNT:
                raise PatternError(f"more than {_MAX_COUNT} repetitions")
            if count[3] and int(count[3]) < int(count[1]):
                raise PatternError(f"{count[0]} has its bounds the wrong way round")
            length = len(count[0])
        text = self._pattern[begin : begin + length]
        self._place += length
        if self._pattern.startswith("?", self._place):  # lazy: says which part matches what, not what matches
            self._place += 1
        following = self._pattern[self._place : self._place + 1]
        if following and following in "*+?{":
            raise PatternError(f"{self._pattern[begin : self._place + 1]!r} differs by dialect")
        return text
