"""`ToolOptions`: the tools of a request, and which of them may or must be called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from puna.errors import InvalidRequestError

__all__ = ["Tool", "ToolOptions", "read_tools"]

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_TOOLS: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool.

    Attributes:
        name: Its name.
        parameters: The JSON schema of its arguments.
        is_enforced: Whether a grammar holds the arguments to the schema.
        param: What errors call it.
    """

    name: str
    parameters: Mapping[str, Any]
    is_enforced: bool
    param: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOptions:
    """The tools of a request.

    Attributes:
        tools: All of them.
        must_call: Whether the answer must be a call.
        named: The only one that may be called, or None.
        parallel: Whether an answer may hold several calls.
    """

    tools: tuple[Tool, ...]
    must_call: bool
    named: str | None
    parallel: bool

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """Those that may be called."""
        return tuple(tool for tool in self.tools if self.named in (None, tool.name))

    @property
    def needs_grammar(self) -> bool:
        """Whether anything of this has to be enforced."""
        return self.must_call or not self.parallel or any(tool.is_enforced for tool in self.tools)


def read_tools(tools: Sequence[Mapping[str, Any]] | None, choice: Any, parallel: bool) -> ToolOptions | None:
    """Checks the tools of a request.

    Args:
        tools: Objects of `type` function and a `function` of `name`, `description`, `parameters` and `strict`.
        choice: `none`, `auto`, `required`, or an object that names a function; None: `auto`.
        parallel: Whether an answer may hold several calls.

    Returns:
        None where no tool may be called.

    Raises:
        InvalidRequestError: A tool is of a wrong form, or the choice is none of these.
    """
    named = _named(choice)
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequestError("there are no tools", param="tool_choice")
        return None
    if not isinstance(tools, Sequence) or isinstance(tools, str) or len(tools) > _MAX_TOOLS:
        raise InvalidRequestError(f"must be a list of up to {_MAX_TOOLS} tools", param="tools")
    must_call = named is not None or choice == "required"
    read = tuple(_tool(tool, f"tools[{index}].function", must_call) for index, tool in enumerate(tools))
    names = [tool.name for tool in read]
    if len(set(names)) < len(names):
        raise InvalidRequestError("two tools have one name", param="tools")
    if named is not None and named not in names:
        raise InvalidRequestError(f"there is no tool {named!r}", param="tool_choice")
    if choice == "none":
        return None
    return ToolOptions(tools=read, must_call=must_call, named=named, parallel=parallel)


def _named(choice: Any) -> str | None:
    if choice in (None, "none", "auto", "required"):
        return None
    name = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = name.get("name") if isinstance(name, Mapping) else None
    if not isinstance(name, str):
        raise InvalidRequestError(
            'must be none, auto, required, or {"type": "function", "function": {"name": …}}', param="tool_choice"
        )
    return name


def _tool(tool: Any, param: str, must_call: bool) -> Tool:
    is_function = isinstance(tool, Mapping) and tool.get("type", "function") == "function"
    function = tool.get("function") if is_function else None
    if not isinstance(function, Mapping):
        raise InvalidRequestError("must be of type function and have one", param=param)
    name, parameters, strict = function.get("name"), function.get("parameters"), function.get("strict")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        problem = "must have up to 64 letters, digits, dots, underscores and dashes"
        raise InvalidRequestError(problem, param=f"{param}.name")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InvalidRequestError("must be a JSON schema", param=f"{param}.parameters")
    if strict is not None and not isinstance(strict, bool):
        raise InvalidRequestError("must be true or false", param=f"{param}.strict")
    return Tool(name=name, parameters=parameters or {}, is_enforced=bool(strict) or must_call, param=param)
