"""Limits of one template rendering: steps, memory made, time.

A template is a program from a file that somebody else wrote. Jinja's sandbox keeps it from reaching Python, not from
computing forever or filling the memory. So the values that a template can have are a closed set (JSON values, tuples,
and Jinja's own helpers), every operation that can make a large one asks here first, and every loop turn, call and
comparison is counted. Containers cannot be changed inside the sandbox, so their size is known once and remembered.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jinja2 import Undefined
from jinja2.utils import Namespace

MAX_STEPS = 2_000_000
MAX_SECONDS = 1.0
MAX_OUTPUT_BYTES = 1 << 20
MAX_DEPTH = 64
_MAX_ITEMS = 1 << 18
_MAX_VALUE = 1 << 20
_MAX_MADE = 1 << 25
_MAX_BITS = 4096


class BudgetError(Exception):
    """A rendering went beyond a limit; the text says which."""


class Size(NamedTuple):
    """How large a value is: characters when written out (about), elements at all levels, levels."""

    characters: int
    items: int
    depth: int


DICT_VIEWS: tuple[type[Any], ...] = (type({}.keys()), type({}.values()), type({}.items()))
_SCALAR = Size(64, 1, 0)
_NUMBER = Size(24, 1, 0)


class TemplateNamespace(Namespace):
    """Jinja's `namespace`, not allowed inside another value: what is inside a value stays as it was measured."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        Namespace.__init__(*args, **kwargs)
        self = args[0]
        for value in object.__getattribute__(self, "_Namespace__attrs").values():
            _refuse_namespace(value)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_namespace(value)
        super().__setitem__(name, value)


def _refuse_namespace(value: Any) -> None:
    if isinstance(value, Namespace):
        raise BudgetError("a namespace inside another value")


@dataclass
class Budget:
    """What is left of one rendering.

    Attributes:
        input_characters: Size of the variables that the caller passed in; limits on output and values grow with it.
    """

    input_characters: int = 0
    _steps: int = 0
    _made: int = 0
    _deadline: float = 0.0
    _known: dict[int, tuple[Size, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._deadline = time.perf_counter() + MAX_SECONDS
        self.max_output = MAX_OUTPUT_BYTES + 2 * self.input_characters
        self.max_value = _MAX_VALUE + 8 * self.input_characters
        self.max_items = _MAX_ITEMS + self.input_characters
        self._max_made = _MAX_MADE + 100 * self.input_characters

    def step(self, count: int = 1) -> bool:
        """Counts steps; True, so that it can stand in a condition.

        Raises:
            BudgetError: Too many steps, or too much time.
        """
        self._steps += count
        if self._steps > MAX_STEPS:
            raise BudgetError(f"more than {MAX_STEPS} steps")
        if time.perf_counter() > self._deadline:
            raise BudgetError(f"more than {MAX_SECONDS:g} s")
        return True

    def allow(self, characters: int, what: str) -> None:
        """Asks for a text of `characters` before it is made.

        Raises:
            BudgetError: Too large.
        """
        if characters > self.max_value:
            raise BudgetError(f"{what} of {characters} characters")
        self.step()

    def made(self, characters: int) -> None:
        """Counts memory that was made: everything a template makes might still be held.

        Raises:
            BudgetError: Too much in sum.
        """
        self._made += characters
        if self._made > self._max_made:
            raise BudgetError(f"more than {self._max_made} characters made in sum")

    def size(self, value: Any) -> Size:
        """The size of a value; remembered for containers.

        Raises:
            BudgetError: Too large, too deep, or a namespace inside a container.
        """
        if isinstance(value, str):
            return Size(len(value) if value.isascii() else 4 * len(value), 1, 0)
        if isinstance(value, int) and not isinstance(value, bool):
            bits = value.bit_length()
            if bits > _MAX_BITS:
                raise BudgetError(f"a number of {bits} bits")
            return Size(bits // 3 + 2, 1, 0)
        if isinstance(value, float):
            return _NUMBER
        if isinstance(value, DICT_VIEWS):
            return self._measure(list(value))
        if not isinstance(value, (list, tuple, dict)):
            return _SCALAR
        known = self._known.get(id(value))
        if known is None:
            size = self._measure(value)
            # The value is held along: an id is only good as long as its object lives.
            self._known[id(value)] = (size, value)
            return size
        return known[0]

    def _measure(self, value: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> Size:
        self.step(1 + len(value) // 16)
        characters, items, depth = 2, 1, 0
        children: Iterator[Any] = iter(value) if not isinstance(value, dict) else _flat(value)
        for child in children:
            _refuse_namespace(child)
            size = self.size(child)
            characters += size.characters + 4
            items += size.items
            depth = max(depth, size.depth)
            if characters > self.max_value or items > self.max_items or depth >= MAX_DEPTH:
                raise BudgetError(f"a list of more than {items - 1} entries or {characters} characters, {depth} deep")
        return Size(characters, items, depth + 1)

    def check(self, value: Any) -> Any:
        """Measures a value that was just made and counts it; returns it."""
        size = self.size(value)
        if size.characters > self.max_value:
            raise BudgetError(f"a text of {size.characters} characters")
        self.made(size.characters if isinstance(value, str) else _shallow(value))
        return value

    def text(self, value: Any) -> str:
        """`str(value)` for a value that is small enough."""
        if isinstance(value, str):
            return value
        if isinstance(value, Namespace):
            raise BudgetError("a namespace written out as text")
        self.made(self.size(value).characters)
        return str(value)

    def counted(self, values: Iterable[Any]) -> Iterator[Any]:
        """The same values, one step each."""
        for value in values:
            self.step()
            yield self.check(value) if isinstance(value, (list, tuple, dict)) else value

    def listed(self, value: Any) -> Any:
        """A list in place of anything that can be gone through but not measured: ranges, views, generators, loops."""
        if isinstance(value, (str, list, tuple, dict, Undefined)) or not hasattr(type(value), "__iter__"):
            return value
        return self.check(list(self.counted(value)))


def _flat(value: Mapping[Any, Any]) -> Iterator[Any]:
    for key, item in value.items():
        yield key
        yield item


def _shallow(value: Any) -> int:
    return 8 * len(value) + 64 if isinstance(value, (list, tuple, dict)) else 1


def plain(value: Any, depth: int = 0) -> Any:
    """A copy of a JSON-like value made of plain lists, dicts and scalars.

    Raises:
        TypeError: Something else is in it.
        ValueError: Nested too deeply.
    """
    if value is None or isinstance(value, (bool, int, float, Undefined)):
        return value
    if isinstance(value, str):
        return str(value)
    if depth >= MAX_DEPTH // 2:
        raise ValueError(f"nested more than {MAX_DEPTH // 2} levels deep")
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("an object has a key that is no text")
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value]
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def characters_in(value: Any) -> int:
    """Characters of all texts in a plain value, plus a few for each entry."""
    if isinstance(value, str):
        return len(value) if value.isascii() else 4 * len(value)
    if isinstance(value, dict):
        return sum(len(key) + characters_in(item) + 8 for key, item in value.items())
    if isinstance(value, list):
        return sum(characters_in(item) + 4 for item in value)
    return 8
