"""Values that users state, held against their ranges."""

from __future__ import annotations

import math

import numpy as np

from puna.errors import InvalidRequestError

__all__ = ["require_integer", "require_number"]


def require_integer(name: str, value: object, low: int, high: int | None) -> None:
    """Refuses what is no integer from `low` to `high`.

    Raises:
        InvalidRequestError: see above; `param` is the name.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InvalidRequestError(f"must be an integer, got {value!r}", param=name)
    if value < low or (high is not None and value > high):
        expected = f"at least {low}" if high is None else f"from {low} to {high}"
        raise InvalidRequestError(f"must be {expected}, got {value}", param=name)


def require_number(name: str, value: object, low: float, high: float, is_open: bool) -> None:
    """Refuses what is no finite number from `low` to `high`; `is_open`: nor is `low` itself.

    Raises:
        InvalidRequestError: see above; `param` is the name.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise InvalidRequestError(f"must be a number, got {value!r}", param=name)
    # Compared, not `isfinite`: there are integers that no float holds.
    if not (-math.inf < value < math.inf and low <= value <= high) or (is_open and value == low):
        raise InvalidRequestError(f"must be {_range(low, high, is_open)}, got {value}", param=name)


def _range(low: float, high: float, is_open: bool) -> str:
    if math.isinf(low):
        return "finite"
    if math.isinf(high):
        return f"finite and {'above' if is_open else 'at least'} {low:g}"
    return f"above {low:g} and at most {high:g}" if is_open else f"from {low:g} to {high:g}"
