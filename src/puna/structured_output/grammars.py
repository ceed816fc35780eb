"""From what a request states to what the grammar's engine compiles."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from puna.structured_output.errors import GrammarError
from puna.structured_output.json_schema import check_schema
from puna.structured_output.params import StructuredOutputsParams

__all__ = ["grammar_of", "json_grammar", "literal", "named", "structural_tags"]

WHITESPACE: Final = r"[ \n\r\t]{1,64}"
"""What may stand between parts of JSON where nothing else is stated: a model that is caught in spaces gets out."""

_ESCAPES: Final = 'nrbtf\\"'
"""Escapes in strings. Without those by number each text has one spelling: names and patterns can't be got round."""

_OBJECT: Final = {"type": "object"}
_FEATURES: Final = re.compile(r"^\s*[\w!?-]+(?:\.\d+)?\s*\[[^\]]*\b(max_tokens|temperature|stop)\b", re.MULTILINE)
_INLINE: Final = re.compile(r"%json\s*(?=\{)")


def grammar_of(params: StructuredOutputsParams) -> dict[str, Any]:
    """The engine's grammar: `{"grammars": [...]}`.

    Raises:
        GrammarError: It uses what is not supported.
    """
    try:
        return _MAKERS[params.kind](params)
    except GrammarError as error:
        if error.param is not None:
            raise
        raise GrammarError(error.reason, param=params.param, path=error.path) from error


def json_grammar(schema: Any, params: StructuredOutputsParams | None = None) -> dict[str, Any]:
    """The grammar of JSON that a schema accepts.

    Args:
        schema: An object or a boolean.
        params: What is stated about white space; None: nothing.

    Raises:
        GrammarError: The schema uses what is not supported.
    """
    checked = check_schema(schema).schema
    if isinstance(checked, bool):
        if not checked:
            raise GrammarError("false accepts nothing", path="$")
        checked = {}
    options: dict[str, Any] = {"whitespace_pattern": WHITESPACE}
    if params is not None and params.disable_any_whitespace:
        options = {"whitespace_flexible": False}
    elif params is not None and params.whitespace_pattern is not None:
        options = {"whitespace_pattern": params.whitespace_pattern}
    options["json_allowed_escapes"] = _ESCAPES
    return {"grammars": [{"json_schema": {"x-guidance": options, **checked}}]}


def literal(text: str) -> str:
    """A text in the notation of Lark; nothing for an empty one."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def named(grammar: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The parts of a grammar, to stand behind another's that calls it `@name`."""
    first, *others = grammar["grammars"]
    return [{**first, "name": name}, *others]


def structural_tags(
    structures: Sequence[tuple[str, Any, str]], triggers: Sequence[str], params: StructuredOutputsParams | None = None
) -> dict[str, Any]:
    """Free text with tagged parts: from a trigger on, one of the structures that begin with it must follow.

    Args:
        structures: Beginning, schema and end of each.
        triggers: Beginnings of beginnings.
        params: What is stated about white space.

    Raises:
        GrammarError: A structure has no trigger, or a schema is not supported.
    """
    rules = ["%llguidance {}"]
    parts: list[dict[str, Any]] = []
    names = []
    for number, (begin, schema, end) in enumerate(structures):
        trigger = next((trigger for trigger in triggers if begin.startswith(trigger)), None)
        if trigger is None:
            raise GrammarError(f"no trigger begins {begin!r}", path=f"$.structures[{number}].begin")
        try:
            parts += named(json_grammar(schema, params), f"schema_{number}")
        except GrammarError as error:
            path = f"$.structures[{number}].schema{(error.path or '$')[1:]}"
            raise GrammarError(error.reason, path=path) from error
        rules.append(f"trigger_{number}[lazy]: TEXT {literal(trigger)}")
        rest = literal(begin[len(trigger) :])
        rules.append(f"tag_{number}: trigger_{number} {rest} @schema_{number} {literal(end)}")
        names.append(f"tag_{number}")
    rules.append(f"start: ({' | '.join(names)})* rest")
    rules += ["rest: TEXT", r"TEXT: /(.|\n)*/"]
    return {"grammars": [{"lark_grammar": "\n".join(rules)}, *parts]}


def _json(params: StructuredOutputsParams) -> dict[str, Any]:
    return json_grammar(params.json, params)


def _json_object(params: StructuredOutputsParams) -> dict[str, Any]:
    return json_grammar(_OBJECT, params)


def _regex(params: StructuredOutputsParams) -> dict[str, Any]:
    from llguidance import LLMatcher

    assert params.regex is not None
    return _parsed(LLMatcher.grammar_from_regex(params.regex))


def _choice(params: StructuredOutputsParams) -> dict[str, Any]:
    assert params.choice is not None
    for text in params.choice:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise GrammarError(f"{text!r} holds half of a surrogate pair")
    return {"grammars": [{"lark_grammar": "start: " + " | ".join(map(literal, params.choice))}]}


def _context_free(params: StructuredOutputsParams) -> dict[str, Any]:
    assert params.grammar is not None
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        text = any_to_lark(params.grammar)
    except Exception as error:  # the converter raises what it likes
        raise GrammarError(f"is neither Lark nor GBNF: {error}") from error
    if feature := _FEATURES.search(text):
        raise GrammarError(f"the attribute {feature[1]!r} of rules is not supported")
    return {"grammars": [{"lark_grammar": _with_checked_schemas(text)}]}


def _with_checked_schemas(text: str) -> str:
    """A Lark grammar whose schemas were checked as any other."""
    parts, end = [], 0
    decoder = json.JSONDecoder()
    for number, found in enumerate(_INLINE.finditer(text)):
        if found.start() < end:
            continue  # in a text of a schema
        try:
            schema, after = decoder.raw_decode(text, found.end())
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"%json number {number + 1} is not JSON: {error}") from error
        try:
            checked = json_grammar(schema)["grammars"][0]["json_schema"]
        except GrammarError as error:
            raise GrammarError(f"%json number {number + 1}: {error.reason}", path=error.path) from error
        parts += [text[end : found.end()], json.dumps(checked)]
        end = after
    return "".join([*parts, text[end:]])


def _structural_tag(params: StructuredOutputsParams) -> dict[str, Any]:
    value = params.structural_tag
    assert isinstance(value, Mapping)
    unknown = sorted(value.keys() - {"type", "structures", "triggers"})
    if unknown:
        raise GrammarError(f"{unknown[0]!r} is not supported; structures and triggers are", path=f"$.{unknown[0]}")
    structures, triggers = value.get("structures"), value.get("triggers")
    if not isinstance(triggers, list) or not triggers or not all(isinstance(t, str) and t for t in triggers):
        raise GrammarError("must be a list of texts that are not empty", path="$.triggers")
    if not isinstance(structures, list) or not structures:
        raise GrammarError("must be a list that is not empty", path="$.structures")
    found = []
    for number, structure in enumerate(structures):
        path = f"$.structures[{number}]"
        if not isinstance(structure, Mapping) or structure.keys() - {"begin", "schema", "end"}:
            raise GrammarError("must be an object of begin, schema and end", path=path)
        begin, end = structure.get("begin"), structure.get("end", "")
        if not isinstance(begin, str) or not begin or not isinstance(end, str):
            raise GrammarError("begin and end must be texts, begin not empty", path=path)
        found.append((begin, structure.get("schema", {}), end))
    return structural_tags(found, triggers, params)


def _parsed(text: str) -> dict[str, Any]:
    grammar: dict[str, Any] = json.loads(text)
    return grammar


_MAKERS: Final = {
    "json": _json,
    "json_object": _json_object,
    "regex": _regex,
    "choice": _choice,
    "grammar": _context_free,
    "structural_tag": _structural_tag,
}
