"""Schemas that refer to themselves: which of them have values, and which have none or only infinite ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from puna.structured_output.errors import GrammarError, json_path

__all__ = ["check_recursion"]

_Path: TypeAlias = tuple[str | int, ...]
_IN_PLACE = ("allOf", "anyOf", "oneOf")


def check_recursion(nodes: Mapping[_Path, Any], targets: Mapping[_Path, _Path]) -> None:
    """Refuses a schema that means itself, and one all of whose values would be infinite.

    Args:
        nodes: Every schema, by path.
        targets: What the schema at a path refers to.

    Raises:
        GrammarError: There is one; `path` says where.
    """
    _check_circles(nodes, targets)
    waiting: dict[_Path, list[_Path]] = {}  # who asks about a schema
    for path, node in nodes.items():
        for part in _parts(path, node, targets):
            waiting.setdefault(part, []).append(path)
    finite: set[_Path] = set()
    pending = sorted(nodes, key=len)  # the innermost first, from the end
    while pending:
        path = pending.pop()
        if path not in finite and _is_finite(path, nodes[path], targets, finite):
            finite.add(path)
            pending += waiting.get(path, ())
    if infinite := nodes.keys() - finite:
        path = min(infinite, key=lambda path: (len(path), str(path)))
        raise GrammarError("every value would be infinite: it refers to itself without an end", path=json_path(path))


def _check_circles(nodes: Mapping[_Path, Any], targets: Mapping[_Path, _Path]) -> None:
    """Refuses a schema that is reached from itself without an array or an object in between."""
    done: set[_Path] = set()
    for start in nodes:
        trail: list[tuple[_Path, bool]] = [(start, False)]
        on_trail: set[_Path] = set()
        while trail:
            path, is_left = trail.pop()
            if is_left:
                on_trail.discard(path)
                done.add(path)
                continue
            if path in on_trail:
                raise GrammarError("it refers to itself and to nothing else", path=json_path(path))
            if path in done:
                continue
            on_trail.add(path)
            trail.append((path, True))
            trail += [(following, False) for following in _in_place(path, nodes[path], targets)]


def _in_place(path: _Path, node: Any, targets: Mapping[_Path, _Path]) -> list[_Path]:
    """The schemas that the same value must satisfy, or may."""
    if not isinstance(node, Mapping):
        return []
    found = [(*path, name, index) for name in _IN_PLACE for index in range(len(node.get(name, ())))]
    if path in targets:
        found.append(targets[path])
    return found


def _parts(path: _Path, node: Any, targets: Mapping[_Path, _Path]) -> list[_Path]:
    """The schemas that decide whether a schema has a finite value."""
    if not isinstance(node, Mapping):
        return []
    found = _in_place(path, node, targets)
    found += [(*path, "properties", name) for name in node.get("required", ()) if name in node.get("properties", {})]
    found += [(*path, name, i) for name in ("prefixItems", "items") for i in range(_length(node.get(name)))]
    return found + [(*path, name) for name in ("items", "additionalItems")]


def _is_finite(path: _Path, node: Any, targets: Mapping[_Path, _Path], finite: set[_Path]) -> bool:
    """Whether a schema has a finite value, as far as is known by now."""
    if not isinstance(node, Mapping) or "enum" in node or "const" in node:
        return True
    if path in targets and targets[path] not in finite:
        return False
    for name in _IN_PLACE:
        parts = [(*path, name, index) in finite for index in range(len(node.get(name, ())))]
        if parts and not (all(parts) if name == "allOf" else any(parts)):
            return False
    types = node.get("type", "null")
    types = types if isinstance(types, list) else [types]
    if set(types) - {"array", "object"}:
        return True
    return any(_has_finite(kind, path, node, finite) for kind in types)


def _has_finite(kind: str, path: _Path, node: Mapping[str, Any], finite: set[_Path]) -> bool:
    if kind == "object":
        properties = node.get("properties", {})
        wanted = [(*path, "properties", name) for name in node.get("required", ()) if name in properties]
        return all(place in finite for place in wanted)
    least = node.get("minItems", 0)
    prefix = [(*path, name, i) for name in ("prefixItems", "items") for i in range(_length(node.get(name)))]
    wanted = prefix[: int(least)]
    if least > len(prefix):
        wanted += [(*path, name) for name in ("items", "additionalItems") if isinstance(node.get(name), Mapping)]
    return all(place in finite for place in wanted)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else 0
