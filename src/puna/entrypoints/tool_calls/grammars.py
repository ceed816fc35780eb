"""Grammars of answers to conversations: tool calls with valid arguments, and reasoning before either."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from puna.entrypoints.reasoning import ReasoningFormat
from puna.entrypoints.tool_calls.formats import ToolCallFormat
from puna.entrypoints.tool_calls.options import Tool, ToolOptions
from puna.structured_output import GrammarError
from puna.structured_output.grammars import json_grammar, literal, named
from puna.structured_output.json_schema import check_schema, moved

__all__ = ["behind_reasoning", "tool_grammar"]

Mark = Callable[[str], str]
"""A marker in the notation of grammars: a control token by its id, other text as it is."""

_TEXT: Final = r"TEXT: /(.|\n)*/"
_PLAIN: Final = r"PLAIN: /[ \t\r\n]*[^{\[ \t\r\n](.|\n)*/"  # a message that cannot be taken for a bare call


def tool_grammar(
    known: ToolCallFormat, options: ToolOptions, mark: Mark, content: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The grammar of a message that calls tools: it must, or it may, as the options say.

    Args:
        known: How calls are written.
        options: The tools, and which of them may or must be called.
        mark: See `Mark`.
        content: The grammar of what is not a call; None: any text.

    Raises:
        GrammarError: The parameters of a tool use what is not supported.
    """
    tools = options.callable_tools
    rules = ["%llguidance {}"]
    parts: list[Any] = []
    body = _named_calls if known.markers[0].payload == "named" else _json_calls
    calls = body(known, tools, options, mark, rules, parts)
    begin = known.markers[0].begin
    if options.must_call:
        rules.append(f"start: {mark(begin)} {calls}")
    elif content is not None:
        parts += named(content, "content")
        rules.append(f"start: @content | {mark(begin)} {calls}")
    elif not begin:
        rules += [f"start: PLAIN? | {calls}", _PLAIN]
    else:
        rules += [_trigger(begin, mark), f"tagged: trigger {calls}", _TEXT, "rest: TEXT"]
        rules.append("start: tagged* rest" if options.parallel else "start: tagged | rest")
    return {"grammars": [{"lark_grammar": "\n".join(rules)}, *parts]}


def behind_reasoning(
    grammar: Mapping[str, Any], known: ReasoningFormat, is_open: bool, mark: Mark
) -> dict[str, Any]:
    """The grammar of a message that may think first.

    Args:
        grammar: Of what comes behind the reasoning.
        known: How reasoning is marked.
        is_open: Whether the prompt ends within it.
        mark: See `Mark`.
    """
    rules = ["%llguidance {}", _trigger(known.end, mark), r"SPACE: /[ \t\r\n]{1,8}/", _TEXT]
    rules.append("start: trigger SPACE? @body" if is_open else f"start: ({mark(known.begin)} trigger SPACE?)? @body")
    return {"grammars": [{"lark_grammar": "\n".join(rules)}, *named(grammar, "body")]}


def _trigger(marker: str, mark: Mark) -> str:
    """The rule of any text up to a marker."""
    if mark(marker).startswith("<"):  # a control token, which is in no text
        return f"trigger: TEXT {mark(marker)}"
    return f"trigger[lazy]: TEXT {literal(marker)}"


def _json_calls(
    known: ToolCallFormat, tools: Sequence[Tool], options: ToolOptions, mark: Mark, rules: list[str], parts: list[Any]
) -> str:
    """What stands behind the first marker: objects of JSON, or a list of them."""
    pointer = "#/items" if known.is_list else "#"
    calls = [_call(known, tool, f"{pointer}/anyOf/{index}") for index, tool in enumerate(tools)]
    schema: dict[str, Any] = {"anyOf": calls}
    if known.is_list:
        schema = {"type": "array", "items": schema, "minItems": 1}
        if not options.parallel:
            schema["maxItems"] = 1
    parts += named(json_grammar(schema), "json")
    marker = known.markers[0]
    if known.is_list:
        return f"@json {mark(marker.end)}"
    call = "@json" if not marker.end else f'"\\n" @json "\\n" {mark(marker.end)}'
    if not options.parallel:
        return call
    return f"{call} ({literal(known.separator)} {mark(marker.begin)} {call})*"


def _named_calls(
    known: ToolCallFormat, tools: Sequence[Tool], options: ToolOptions, mark: Mark, rules: list[str], parts: list[Any]
) -> str:
    """What stands behind the first marker: a name, a marker, and arguments."""
    for index, tool in enumerate(tools):
        parts += named(json_grammar(_parameters(tool)), f"json_{index}")
        rules.append(f"call_{index}: {literal(tool.name)} {mark('[ARGS]')} @json_{index}")
    rules.append(f"call: {' | '.join(f'call_{index}' for index in range(len(tools)))}")
    return f"call ({mark(known.markers[0].begin)} call)*" if options.parallel else "call"


def _call(known: ToolCallFormat, tool: Tool, pointer: str) -> dict[str, Any]:
    """The schema of a call; `pointer`: where it stands."""
    arguments = moved(_parameters(tool), f"{pointer}/properties/{known.arguments}")
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, known.arguments: arguments},
        "required": ["name", known.arguments],
        "additionalProperties": False,
    }


def _parameters(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments."""
    if not tool.is_enforced:
        return {"type": "object"}
    schema = {"type": "object", **tool.parameters}
    try:
        check_schema(schema)
    except GrammarError as error:
        raise GrammarError(error.reason, param=f"{tool.param}.parameters", path=error.path) from error
    return {name: value for name, value in schema.items() if name not in ("$schema", "$id")}
