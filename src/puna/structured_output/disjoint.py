"""Whether no value satisfies two JSON schemas, as far as types, constants and required properties tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

__all__ = ["are_disjoint"]

_MAX_DEPTH: Final = 16


def are_disjoint(first: Any, second: Any, target: Callable[[str], Any], depth: int = 0) -> bool:
    """Whether no value satisfies both schemas; False where that is not certain.

    Args:
        first: A schema.
        second: Another.
        target: The schema that a reference names.
        depth: How far inside of the schemas that were asked about.
    """
    if depth > _MAX_DEPTH:
        return False
    first, second = _resolved(first, target), _resolved(second, target)
    if first is False or second is False:
        return True
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        return False
    if not _may_share_type(_types(first), _types(second)):
        return True
    values = [_values(schema) for schema in (first, second)]
    if values[0] is not None and values[1] is not None:
        return not any(_equal(one, other) for one in values[0] for other in values[1])
    if _types(first) != {"object"} or _types(second) != {"object"}:
        return False
    # A value without the property fails the schema that requires it; one with it fails one of the two.
    properties = [schema.get("properties", {}) for schema in (first, second)]
    required = {*first.get("required", ()), *second.get("required", ())}
    shared = [name for name in required if all(name in known for known in properties)]
    return any(are_disjoint(properties[0][name], properties[1][name], target, depth + 1) for name in shared)


def _resolved(schema: Any, target: Callable[[str], Any]) -> Any:
    for _ in range(_MAX_DEPTH):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            break
        schema = target(schema["$ref"])
    return schema


def _types(schema: Mapping[str, Any]) -> set[str]:
    """The types that its values can have; empty: any."""
    stated = schema.get("type")
    if isinstance(stated, str):
        return {stated}
    return set(stated or ())


def _may_share_type(first: set[str], second: set[str]) -> bool:
    if not first or not second or first & second:
        return True
    numbers = {"integer", "number"}
    return bool(first & numbers and second & numbers)


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values: list[Any] | None = schema.get("enum")
    return values


def _equal(first: Any, second: Any) -> bool:
    """Equality of JSON: true is not 1. Values with parts count as equal, which is the safe answer."""
    if isinstance(first, dict | list) and isinstance(second, dict | list):
        return True
    return isinstance(first, bool) == isinstance(second, bool) and bool(first == second)
