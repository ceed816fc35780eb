"""Which layers of a checkpoint an entry of `ignore`, `targets` or `modules_to_not_convert` means.

Patterns come from files that may be hostile. Only patterns of a kind that matches fast are taken: a repetition inside a
repetition, or many of them, can make matching a short name take years.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from functools import lru_cache
from re import _constants, _parser  # type: ignore[attr-defined]  # the only parser of patterns that there is
from typing import Any, Final

from puna.errors import UnsupportedModelError

__all__ = ["ModuleNames"]

_MAX_PATTERN: Final = 1024
_MAX_ENTRIES: Final = 65536
_MAX_PATTERNS: Final = 64
_MAX_REPEATS: Final = 4
_MAX_NAME: Final = 256
_WITH_WILDCARDS: Final = re.compile(r"[*?\[]")


class ModuleNames:
    """A list of names and patterns.

    An entry `re:…` is a pattern that a name begins with; one with `*`, `?` or `[…]` is a pattern of file names; any
    other one is the name of a layer or of a part of the tree above it. With or without the prefix `model.` is the same.

    Args:
        entries: The list.
        key: Its key in the configuration, for messages.
        file: The configuration's file, for messages.

    Raises:
        UnsupportedModelError: the value is no list of texts, or holds a pattern that is broken or could take too long.
    """

    def __init__(self, entries: Any, key: str, file: str | None) -> None:
        is_list = isinstance(entries, Sequence) and not isinstance(entries, str)
        if not is_list or len(entries) > _MAX_ENTRIES or not all(isinstance(entry, str) for entry in entries):
            raise UnsupportedModelError(key, entries, file=file, supported="a list of names")
        self.entries: Final[tuple[str, ...]] = tuple(entries)
        self._names = {entry.removeprefix("model.") for entry in self.entries}
        self._patterns: list[Callable[[str], Any]] = []
        for entry in self.entries:
            if entry.startswith("re:"):
                self._patterns.append(_compiled(entry[3:], key, file).match)
            elif _WITH_WILDCARDS.search(entry):
                self._patterns.append(_compiled(translate(entry), key, file).match)
        if len(self._patterns) > _MAX_PATTERNS:
            raise UnsupportedModelError(key, f"{len(self._patterns)} patterns", file=file, supported=str(_MAX_PATTERNS))

    def __contains__(self, module: object) -> bool:
        if not isinstance(module, str) or not self.entries:
            return False
        parts = module.removeprefix("model.").split(".")
        if any(".".join(parts[: count + 1]) in self._names for count in range(len(parts))):
            return True
        return len(module) <= _MAX_NAME and any(match(module) for match in self._patterns)


def _compiled(pattern: str, key: str, file: str | None) -> re.Pattern[str]:
    reason = "patterns of at most 1024 characters"
    if len(pattern) <= _MAX_PATTERN:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if _is_quick(pattern):
                    return re.compile(pattern)
            reason = f"patterns of at most {_MAX_REPEATS} repetitions that are not nested"
        except (re.error, OverflowError, RecursionError) as error:
            reason = f"regular expressions ({error})"
    raise UnsupportedModelError(key, f"re:{pattern}"[:200], file=file, supported=reason)


@lru_cache(maxsize=256)
def _is_quick(pattern: str) -> bool:
    return _repeats(_parser.parse(pattern), is_inside=False) <= _MAX_REPEATS


def _repeats(nodes: Iterable[Any], *, is_inside: bool) -> int:
    """Repetitions in a parsed pattern; a nested one, or a reference to a group, counts as too many."""
    count = 0
    for operator, argument in nodes:
        if operator in (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT):
            low, high, inner = argument
            is_loop = high != low or high > 1
            if is_loop and is_inside:
                return _MAX_REPEATS + 1
            count += int(is_loop and not (low == 0 and high == 1)) + _repeats(inner, is_inside=is_inside or is_loop)
        elif operator in (_constants.GROUPREF, _constants.GROUPREF_EXISTS):
            return _MAX_REPEATS + 1
        elif operator is _constants.BRANCH:
            count += sum(_repeats(branch, is_inside=is_inside) for branch in argument[1])
        elif operator is _constants.SUBPATTERN:
            count += _repeats(argument[-1], is_inside=is_inside)
        elif operator in (_constants.ASSERT, _constants.ASSERT_NOT):
            count += _repeats(argument[1], is_inside=is_inside)
        elif operator is _constants.ATOMIC_GROUP:
            count += _repeats(argument, is_inside=is_inside)
    return count
