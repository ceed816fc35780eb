"""Typed reads from a checkpoint's configuration, whatever object it is.

Any object with the attributes of a transformers config will do: Puna's own record, a real one, a namespace in a test.
A value of the wrong kind is an error that names key, value and file; an absent key has a default or is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar, overload

from puna.errors import UnsupportedModelError

__all__ = ["config_source", "read_count", "read_flag", "read_number", "read_numbers", "read_value"]

DefaultT = TypeVar("DefaultT")


class _Required:
    """Marks a key without a default."""


_REQUIRED: Final = _Required()


def config_source(config: Any) -> str | None:
    """Where a configuration came from, for messages; None where it does not say."""
    source = getattr(config, "source", None)
    return str(source) if source is not None else None


def read_value(config: Any, key: str) -> Any:
    """The value of `key` in a mapping or of the attribute `key` of an object; None where it is absent."""
    return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)


@overload
def read_count(config: Any, key: str, *, file: str | None = None) -> int: ...
@overload
def read_count(config: Any, key: str, default: DefaultT, *, file: str | None = None) -> int | DefaultT: ...
def read_count(config: Any, key: str, default: Any = _REQUIRED, *, file: str | None = None) -> Any:
    """An integer from 1. Null counts as absent.

    Raises:
        UnsupportedModelError: the key is absent and has no default, or its value is something else.
    """
    value = read_value(config, key)
    if value is None:
        return _absent(config, key, default, file)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value < 1:
        raise UnsupportedModelError(key, value, file=file or config_source(config), supported="integers from 1")
    return int(value)


@overload
def read_number(config: Any, key: str, *, file: str | None = None) -> float: ...
@overload
def read_number(config: Any, key: str, default: DefaultT, *, file: str | None = None) -> float | DefaultT: ...
def read_number(config: Any, key: str, default: Any = _REQUIRED, *, file: str | None = None) -> Any:
    """A finite number, as float. Null counts as absent. Raises as `read_count`."""
    value = read_value(config, key)
    if value is None:
        return _absent(config, key, default, file)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UnsupportedModelError(key, value, file=file or config_source(config), supported="finite numbers")
    return float(value)


def read_numbers(config: Any, key: str, *, file: str | None = None) -> list[float]:
    """A list of finite numbers. Raises as `read_count`."""
    value = read_value(config, key)
    if value is None:
        _absent(config, key, _REQUIRED, file)
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not all(_is_finite(element) for element in value):
        raise UnsupportedModelError(key, value, file=file or config_source(config), supported="lists of numbers")
    return [float(element) for element in value]


def read_flag(config: Any, key: str, default: DefaultT, *, file: str | None = None) -> bool | DefaultT:
    """True or False. Null counts as absent.

    Raises:
        UnsupportedModelError: the value is neither.
    """
    value = read_value(config, key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise UnsupportedModelError(key, value, file=file or config_source(config), supported="true, false")
    return value


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _absent(config: Any, key: str, default: Any, file: str | None) -> Any:
    if default is _REQUIRED:
        supported = "a value, there is no default"
        raise UnsupportedModelError(key, None, file=file or config_source(config), supported=supported)
    return default
