"""JSON schemas: what of them is enforced, and what is refused.

`check_schema` reads a schema before the grammar's compiler does, because that one has gaps that it does not tell:
duplicate keys, numbers that a validator rounds, expressions that dialects read differently. What can't be promised is
refused, with its JSON path; some keywords are narrowed, so that a text that a validator would refuse is never written.
Sources: JSON Schema 2020-12, 2019-09, draft-07 and draft-06.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from puna.structured_output.disjoint import are_disjoint
from puna.structured_output.errors import GrammarError, json_path
from puna.structured_output.patterns import PatternError, is_unnamed_control, portable_pattern
from puna.structured_output.recursion import check_recursion

__all__ = ["MAX_DEPTH", "CheckedSchema", "check_schema", "moved"]

MAX_DEPTH: Final = 64
"""How deep schemas may be nested."""

_Path: TypeAlias = tuple[str | int, ...]

_TYPES: Final = ("null", "boolean", "integer", "number", "string", "array", "object")
_FORMATS: Final = frozenset({
    *("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"),
})
_ANNOTATIONS: Final = frozenset({
    *("$schema", "$id", "$comment", "title", "description", "default", "examples", "example", "deprecated"),
    *("readOnly", "writeOnly", "contentMediaType", "contentEncoding", "discriminator"),
})
_OLD_DRAFTS: Final = ("draft-06/schema", "draft-07/schema", "draft/2019-09/schema")
_NEW_DRAFT: Final = "draft/2020-12/schema"
_MAX_INTEGER: Final = 1 << 53  # up to here every JSON reader agrees
_MAX_NODES: Final = 10_000
_MAX_COMPARED: Final = 64  # schemas of a oneOf: each with each
_DIGITS: Final = 15  # decimal digits that survive every conversion


@dataclass(frozen=True, slots=True)
class CheckedSchema:
    """A schema that can be enforced.

    Attributes:
        schema: For the grammar's compiler: as narrow as the given one, or narrower.
        places: The path of every schema in it, the innermost last.
        enforced: The keywords that are enforced, sorted.
        annotations: The keywords that say something to people only, sorted.
    """

    schema: Any
    places: tuple[_Path, ...]
    enforced: tuple[str, ...]
    annotations: tuple[str, ...]


def check_schema(schema: Any) -> CheckedSchema:
    """Checks a JSON schema, an object or a boolean.

    Raises:
        GrammarError: It uses what is not supported, or makes no sense; `path` says where.
    """
    check = _Check(schema)
    root = check.run()
    check_recursion(check.nodes, check.targets)
    return CheckedSchema(
        root, tuple(check.nodes), tuple(sorted(check.enforced)), tuple(sorted(check.annotations))
    )


def moved(schema: Any, pointer: str) -> Any:
    """A schema for another place: its references lead there.

    Args:
        schema: The schema, which was the whole document.
        pointer: Where it will stand, as `#/a/b`.
    """
    if isinstance(schema, list):
        return [moved(part, pointer) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        name: pointer + value[1:] if name == "$ref" and isinstance(value, str) else moved(value, pointer)
        for name, value in schema.items()
    }


@dataclass
class _Check:
    root: Any
    nodes: dict[_Path, Any] = field(default_factory=dict)  # the given ones
    targets: dict[_Path, _Path] = field(default_factory=dict)  # of `$ref`
    enforced: set[str] = field(default_factory=set)
    annotations: set[str] = field(default_factory=set)
    is_old: bool = False

    def run(self) -> Any:
        self._set_draft()
        result = self._schema(self.root, ())
        while missing := [target for target in self.targets.values() if target not in self.nodes]:
            for target in missing:
                if target not in self.nodes:
                    self._replace(result, target, self._schema(_at(self.root, target), target))
        return result

    def _set_draft(self) -> None:
        if not isinstance(self.root, Mapping) or "$schema" not in self.root:
            return
        stated = self.root["$schema"]
        name = stated.rstrip("#").split("json-schema.org/")[-1] if isinstance(stated, str) else stated
        if name not in (*_OLD_DRAFTS, _NEW_DRAFT):
            known = "2020-12, 2019-09, draft-07 and draft-06"
            raise GrammarError(f"{stated!r} is not supported; {known} are", path="$.$schema")
        self.is_old = name != _NEW_DRAFT

    def _schema(self, node: Any, path: _Path) -> Any:
        if len(path) > 2 * MAX_DEPTH or len(self.nodes) > _MAX_NODES:
            limit = f"deeper than {MAX_DEPTH}" if len(path) > 2 * MAX_DEPTH else f"more than {_MAX_NODES}"
            raise GrammarError(f"schemas are nested {limit}", path=json_path(path[:8]) + "…")
        if isinstance(node, bool):
            self.nodes[path] = node
            return node
        if not isinstance(node, Mapping):
            raise GrammarError(f"a schema must be an object, true or false, got {_brief(node)}", path=json_path(path))
        self.nodes[path] = node
        checked: dict[str, Any] = {}
        for keyword, value in node.items():
            at = (*path, keyword)
            if keyword in ("$defs", "definitions"):
                self._expect(isinstance(value, Mapping), "must be an object", at)
                checked[keyword] = dict.fromkeys(value, True)  # read when something refers to them
            elif keyword in _ANNOTATIONS or (keyword.startswith("x-") and keyword != "x-guidance"):
                self._expect(keyword not in ("$schema", "$id") or not path, "is supported at the top only", at)
                self.annotations.add(keyword)
            elif keyword in _READERS:
                self.enforced.add(keyword)
                _READERS[keyword](self, node, checked, value, at)
            else:
                raise GrammarError(f"the keyword {keyword!r} is not supported", path=json_path(at))
        return checked

    def _replace(self, root: Any, target: _Path, checked: Any) -> None:
        """Puts a schema that something refers to where it belongs."""
        place = root
        for part, following in itertools.pairwise(target):
            if isinstance(place, dict) and (part not in place or place[part] is True):
                place[part] = [] if isinstance(following, int) else {}
            place = place[part]
        if isinstance(place, list):
            place.extend([True] * (int(target[-1]) + 1 - len(place)))
        place[target[-1]] = checked

    @staticmethod
    def _expect(holds: bool, problem: str, at: _Path) -> None:
        if not holds:
            raise GrammarError(problem, path=json_path(at))

    # One method per keyword or kind of keyword: (the schema, its checked twin, the value, its path).

    def _type(self, node: Any, checked: Any, value: Any, at: _Path) -> None:
        names = value if isinstance(value, list) else [value]
        self._expect(bool(names), "must not be empty", at)
        for name in names:
            self._expect(name in _TYPES, f"{_brief(name)} is not a type of JSON", at)
        checked["type"] = value
        if "integer" in names and "number" not in names and not node.keys() & {"enum", "const"}:
            # Beyond these readers of JSON differ; and a model that is caught in digits gets out.
            checked["minimum"] = max(checked.get("minimum", -_MAX_INTEGER), -_MAX_INTEGER)
            checked["maximum"] = min(checked.get("maximum", _MAX_INTEGER), _MAX_INTEGER)

    def _one(self, node: Any, checked: Any, value: Any, at: _Path) -> None:
        checked[at[-1]] = self._schema(value, at)

    def _many(self, node: Any, checked: Any, value: Any, at: _Path) -> None:
        self._expect(isinstance(value, list) and bool(value), "must be a list that is not empty", at)
        checked[at[-1]] = [self._schema(part, (*at, index)) for index, part in enumerate(value)]

    def _one_of(self, node: Any, checked: Any, value: Any, at: _Path) -> None:
        self._many(node, checked, value, at)
        pairs = itertools.combinations(value, 2)
        is_small = "anyOf" not in node and len(value) <= _MAX_COMPARED
        if is_small and all(are_disjoint(one, other, self._target) for one, other in pairs):
            checked["anyOf"] = checked.pop("oneOf")  # which the grammar's compiler can always express

    def _target(self, reference: str) -> Any:
        try:
            return _at(self.root, _pointer(self.root, reference))
        except (LookupError, ValueError):
            return True  # it is refused where it stands

    def _named(self, node: Any, checked: Any, value: Any, at: _Path) -> None:
        self._expect(isinstance(value, Mapping), "must be an object", at)
        for name in value:
            self._text(name, at)
        checked[at[-1]] = {name: self._schema(part, (*at, name)) for name, part in value.items()}

    def _pattern_properties(self, node: Any, checked: Any, value: Any, at: _Path) -> None:
        self._expect(isinstance(value, Mapping), "must be an object", at)
        checked["patternProperties"] = {
            self._portable(pattern, (*at, pattern)): self._schema(part, (*at, pattern))
            for pattern, part in value.items()
        }

    def _items(self, node: Any, checked: Any, value: Any, at: _Path) -> None:
        if not isinstance(value, list):
            return self._one(node, checked, value, at)
        self._expect(self.is_old, "must be a schema; prefixItems takes a list", at)
        checked["prefixItems"] = [self._schema(part, (*at, index)) for index, part in enumerate(value)]
        checked.setdefault("items", True)
        return None

    def _additional_items(self, node: Any, checked: Any, value: Any, at: _Path) -> None:
        self._expect(self.is_old, "is not a keyword of this draft; items behind prefixItems is", at)
        if isinstance(node.get("items"), list):  # else it says nothing
            checked["items"] = self._schema(value, at)

    def _prefix_items(self, node: Any, checked: Any, value: Any, at: _Path) -> None:
        self._expect(not self.is_old, "is not a keyword of this draft; items takes a list", at)
        self._many(node, checked, value, at)

    def _count(self, node: Any, checked: Any, value: Any, at: _Path) -> None:
        is_count = isinstance(value, int | float) and not isinstance(value, bool) and value == int(value) >= 0
        self._expect(is_count, "must be an integer from 0", at)
        self._expect(value <= 100_000, "must be at most 100000", at)
        checked[at[-1]] = int(value)

    def _min_properties(self, node: Any, checked: Any, value: Any, at: _Path) -> None:
        self._count(node, checked, value, at)
        required = set(node.get("required", ()))
        if checked["minProperties"] <= len(required):
            del checked["minProperties"]  # as many are there
        else:
            # Names that no keyword lists may be written twice, and count once.
            enough = max(1, len(required) + 1)
            self._expect(checked["minProperties"] <= enough, f"above {enough} is not supported here", at)

    def _required(self, node: Any, checked: Any, value: Any, at: _Path) -> None:
        is_list = isinstance(value, list) and all(isinstance(name, str) for name in value)
        self._expect(is_list and len(set(value)) == len(value), "must be a list of different names", at)
        for name in value:
            self._text(name, at)
        checked["required"] = list(value)

    def _literal(self, node: Any, checked: Any, value: Any, at: _Path) -> None:
        self._expect(at[-1] == "const" or (isinstance(value, list) and bool(value)), "must be a list with values", at)
        self._check_value(value, at)
        checked[at[-1]] = value

    def _check_value(self, value: Any, at: _Path) -> None:
        self._expect(len(at) <= 2 * MAX_DEPTH, f"values are nested deeper than {MAX_DEPTH}", at[:8])
        if isinstance(value, Mapping):
            for name, part in value.items():
                self._text(name, at)
                self._check_value(part, (*at, name))
        elif isinstance(value, list):
            for index, part in enumerate(value):
                self._check_value(part, (*at, index))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            self._number(value, at)
        elif isinstance(value, str):
            self._text(value, at)

    def _text(self, value: str, at: _Path) -> None:
        self._expect(not any("\ud800" <= c <= "\udfff" for c in value), "holds half of a surrogate pair", at)
        unnamed = next((c for c in value if is_unnamed_control(c)), None)
        self._expect(unnamed is None, f"holds the control character U+{ord(unnamed or ' '):04X}", at)

    def _number(self, value: Any, at: _Path) -> None:
        """A number that every reader of JSON takes for the same."""
        self._expect(isinstance(value, int | float) and not isinstance(value, bool), "must be a number", at)
        self._expect(math.isfinite(value), "must be finite", at)
        self._expect(abs(value) <= _MAX_INTEGER, f"beyond ±{_MAX_INTEGER} readers of JSON differ", at)
        is_short = float(f"{value:.{_DIGITS}g}") == value
        self._expect(is_short and (value == 0 or abs(value) >= 1e-15), f"has more than {_DIGITS} digits", at)

    def _bound(self, node: Any, checked: Any, value: Any, at: _Path) -> None:
        self._number(value, at)
        checked[at[-1]] = max(value, checked.get(at[-1], value)) if at[-1] == "minimum" else (
            min(value, checked.get(at[-1], value))
        )

    def _exclusive(self, node: Any, checked: Any, value: Any, at: _Path) -> None:
        """Numbers that a reader rounds to the bound are kept away from it: a validator sees the rounded ones."""
        self._number(value, at)
        if node.get("type") == "integer":
            checked[at[-1]] = value
            return
        step = 10.0 ** (math.floor(math.log10(abs(value))) - _DIGITS + 3) if value else 1e-12
        name, sign = ("minimum", 1) if at[-1] == "exclusiveMinimum" else ("maximum", -1)
        bound = float(f"{value + sign * step:.{_DIGITS}g}")
        known = node.get(name, bound)
        self._number(known, (*at[:-1], name))
        checked[name] = max(known, bound) if sign > 0 else min(known, bound)

    def _multiple(self, node: Any, checked: Any, value: Any, at: _Path) -> None:
        self._number(value, at)
        self._expect(value > 0, "must be above 0", at)
        is_integer = value == int(value) and node.get("type") == "integer"
        self._expect(is_integer, "is supported for integers of type integer: validators round fractions", at)
        checked["multipleOf"] = int(value)

    def _pattern(self, node: Any, checked: Any, value: Any, at: _Path) -> None:
        self._expect(isinstance(value, str), "must be text", at)
        checked["pattern"] = self._portable(value, at)

    def _portable(self, pattern: str, at: _Path) -> str:
        try:
            return portable_pattern(pattern)
        except PatternError as error:
            raise GrammarError(f"{_brief(pattern)}: {error}", path=json_path(at)) from error

    def _format(self, node: Any, checked: Any, value: Any, at: _Path) -> None:
        there_is = ", ".join(sorted(_FORMATS))
        self._expect(value in _FORMATS, f"{_brief(value)} is not supported; there is: {there_is}", at)
        checked["format"] = value

    def _reference(self, node: Any, checked: Any, value: Any, at: _Path) -> None:
        is_local = isinstance(value, str) and (value == "#" or value.startswith("#/"))
        self._expect(is_local, f"{_brief(value)} is not supported; references within the schema (#/…) are", at)
        try:
            parts = _pointer(self.root, value)
        except (LookupError, ValueError):
            raise GrammarError(f"{value!r} is not there", path=json_path(at)) from None
        self.targets[at[:-1]] = parts
        checked["$ref"] = value


_READERS: Final[dict[str, Callable[[_Check, Any, Any, Any, _Path], None]]] = {
    "type": _Check._type,
    "enum": _Check._literal,
    "const": _Check._literal,
    "allOf": _Check._many,
    "anyOf": _Check._many,
    "oneOf": _Check._one_of,
    "$ref": _Check._reference,
    "properties": _Check._named,
    "patternProperties": _Check._pattern_properties,
    "additionalProperties": _Check._one,
    "required": _Check._required,
    "minProperties": _Check._min_properties,
    "maxProperties": _Check._count,
    "items": _Check._items,
    "prefixItems": _Check._prefix_items,
    "additionalItems": _Check._additional_items,
    "minItems": _Check._count,
    "maxItems": _Check._count,
    "minLength": _Check._count,
    "maxLength": _Check._count,
    "pattern": _Check._pattern,
    "format": _Check._format,
    "minimum": _Check._bound,
    "maximum": _Check._bound,
    "exclusiveMinimum": _Check._exclusive,
    "exclusiveMaximum": _Check._exclusive,
    "multipleOf": _Check._multiple,
}


def _pointer(root: Any, reference: str) -> _Path:
    """The path that a reference names; the place is there.

    Raises:
        LookupError, ValueError: It is not.
    """
    from urllib.parse import unquote

    place, path = root, []
    for part in unquote(reference[1:]).split("/")[1:]:
        name: str | int = part.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list):
            name = int(name)
        place = place[name]
        path.append(name)
    return tuple(path)


def _at(root: Any, path: _Path) -> Any:
    for part in path:
        root = root[part]
    return root


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
