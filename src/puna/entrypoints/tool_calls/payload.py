"""Reads one run of tool calls, character by character."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final

__all__ = ["PAYLOADS", "CallBuilder", "JsonCalls", "NamedCall", "Step", "TaggedCalls"]

_ARGUMENTS: Final = ("arguments", "parameters")
_NAME: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,256}")
_BETWEEN: Final = " \t\r\n,;"  # what may stand between calls


class Step(Enum):
    """What a character was."""

    MORE = "more"
    DONE = "done"  # the last character of the calls
    AFTER = "after"  # behind them, not a part of them
    WRONG = "wrong"  # these are no calls


class CallBuilder:
    """One call as it comes.

    Attributes:
        id: Its id, where the text states one.
        name: Its name; None: not known yet.
        arguments: Parts of the text of its arguments.
    """

    def __init__(self) -> None:
        self.id: str | None = None
        self.name: str | None = None
        self.arguments: list[str] = []


class JsonCalls:
    """An object with `name` and `arguments`, or a list of such objects; outside of a list several may follow.

    Args:
        begin: Told of each call as soon as its name is known.
        is_known: Whether a name may be called; a run of calls whose first name may not is none.
    """

    def __init__(self, begin: Callable[[CallBuilder], None], is_known: Callable[[str], bool]) -> None:
        self._begin = begin
        self._is_known = is_known
        self._is_list: bool | None = None
        self._object: _Object | None = None
        self.num_calls = 0

    def push(self, character: str) -> Step:
        """Takes a character."""
        if self._object is not None:
            step = self._object.push(character)
            if step is Step.DONE:
                self._object = None
                self.num_calls += 1
                return Step.MORE
            return step
        if character == "{":
            self._is_list = bool(self._is_list)
            self._object = _Object(self._begin, self._is_known)
            return Step.MORE
        if self._is_list is None:
            self._is_list = True if character == "[" else None
            return Step.MORE if character == "[" or character.isspace() else Step.WRONG
        if self._is_list and character == "]":
            return Step.DONE
        if character in _BETWEEN:
            return Step.MORE
        return Step.AFTER if self.num_calls and not self._is_list else Step.WRONG

    @property
    def is_between(self) -> bool:
        """Whether no call is open."""
        return self._object is None


class NamedCall:
    """`name[ARGS]{...}`, with `[CALL_ID]id` before the arguments where the model states one; or a list of objects.

    Args:
        begin: As of `JsonCalls`.
        is_known: As of `JsonCalls`.
    """

    def __init__(self, begin: Callable[[CallBuilder], None], is_known: Callable[[str], bool]) -> None:
        self._begin = begin
        self._is_known = is_known
        self._list: JsonCalls | None = None
        self._head = ""
        self._call: CallBuilder | None = None
        self._value: _Value | None = None
        self.num_calls = 0

    def push(self, character: str) -> Step:
        """Takes a character."""
        if self._list is not None:
            return self._list.push(character)
        if self._value is not None:
            step = self._value.push(character)
            self.num_calls += step is Step.DONE
            return step
        self._head += character
        head = self._head.lstrip()
        if head.startswith(("[{", "[ ", "[\n", "{")):
            self._list = JsonCalls(self._begin, self._is_known)
            return [self._list.push(part) for part in head][-1]
        if not head.endswith("[ARGS]") and not (character == "{" and "[" not in head):
            return Step.MORE if len(head) < 512 else Step.WRONG
        name, _, call_id = head.removesuffix("[ARGS]").removesuffix("{").partition("[CALL_ID]")
        if not _NAME.fullmatch(name.strip()):
            return Step.WRONG
        self._call = CallBuilder()
        self._call.name, self._call.id = name.strip(), call_id.strip() or None
        self._begin(self._call)
        self._value = _Value(self._call.arguments.append)
        return self._value.push("{") if character == "{" else Step.MORE

    @property
    def is_between(self) -> bool:
        """Whether no call is open."""
        return self._value is None and (self._list is None or self._list.is_between)


class TaggedCalls:
    """JSON calls, or one `name.call(argument="value")`, which is known when the text ends.

    Args:
        begin: As of `JsonCalls`.
        is_known: As of `JsonCalls`.
    """

    def __init__(self, begin: Callable[[CallBuilder], None], is_known: Callable[[str], bool]) -> None:
        self._begin = begin
        self._json = JsonCalls(begin, is_known)
        self._code: str | None = None

    def push(self, character: str) -> Step:
        """Takes a character."""
        if self._code is None:
            step = self._json.push(character)
            if step is not Step.WRONG or self._json.num_calls:
                return step
            if not self._json.is_between or not (character.isalpha() or character == "_"):
                return Step.WRONG
            self._code = ""
        self._code += character
        return Step.MORE

    def finish(self) -> None:
        """Takes in that the text has ended."""
        call = _python_call(self._code or "")
        if call is not None:
            self._begin(call)

    @property
    def is_between(self) -> bool:
        """Whether no call is open."""
        return self._code is None and self._json.is_between


def _python_call(text: str) -> CallBuilder | None:
    """The call `name.call(argument=literal, ...)`; None: it is none."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if not isinstance(node, ast.Call) or node.args or not isinstance(node.func, ast.Attribute):
            return None
        if node.func.attr != "call" or not isinstance(node.func.value, ast.Name):
            return None
        arguments = {item.arg: ast.literal_eval(item.value) for item in node.keywords if item.arg is not None}
        call = CallBuilder()
        call.name, call.arguments = node.func.value.id, [json.dumps(arguments, ensure_ascii=False, allow_nan=False)]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return call if len(arguments) == len(node.keywords) else None


class _Value:
    """Any value of JSON, passed on as it is written; of a text, what it says."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell = tell
        self._depth = 0
        self._in_text = self._is_escaped = False
        self._text: list[str] | None = None
        self._has_begun = False

    def push(self, character: str) -> Step:
        """Takes a character."""
        if not self._has_begun:
            if character.isspace():
                return Step.MORE
            self._has_begun = True
            self._text = [] if character == '"' else None
        if self._depth == 0 and not self._in_text and character in ",}] \t\r\n" and self._text is None:
            return Step.AFTER  # behind a number, true, false or null
        if self._text is None:
            self._tell(character)
        else:
            self._text.append(character)
        self._move(character)
        is_closed = self._depth == 0 and not self._in_text and character in '"}]'
        if is_closed and self._text is not None:
            self._tell(_said("".join(self._text)))
        return Step.DONE if is_closed else Step.MORE

    def _move(self, character: str) -> None:
        if self._in_text:
            if self._is_escaped:
                self._is_escaped = False
            elif character == "\\":
                self._is_escaped = True
            elif character == '"':
                self._in_text = False
        elif character == '"':
            self._in_text = True
        else:
            self._depth += (character in "{[") - (character in "}]")


class _Object:
    """A call: an object of which the name and the arguments count."""

    def __init__(self, begin: Callable[[CallBuilder], None], is_known: Callable[[str], bool]) -> None:
        self._begin = begin
        self._is_known = is_known
        self._call = CallBuilder()
        self._key: list[str] | None = None
        self._name = ""
        self._parts: list[str] = []
        self._value: _Value | None = None
        self._expects: Sequence[str] = '"}'

    def push(self, character: str) -> Step:
        """Takes a character."""
        if self._value is not None:
            step = self._value.push(character)
            if step is Step.MORE:
                return Step.MORE
            self._value = None
            self._expects = ",}"
            if not self._take():
                return Step.WRONG
            return Step.MORE if step is Step.DONE else self.push(character)
        if self._key is not None:
            self._key.append(character)
            if character == '"' and not _is_escaped(self._key):
                self._name, self._key, self._expects = _said("".join(self._key)), None, ":"
            return Step.MORE
        if character.isspace():
            return Step.MORE
        if character not in self._expects:
            return Step.WRONG
        if character == '"':
            self._key = ['"']
        elif character == ":":
            is_told = self._name in _ARGUMENTS and self._call.name is not None
            self._parts = self._call.arguments if is_told else []
            self._value = _Value(self._parts.append)
        elif character == ",":
            self._expects = '"'
        else:
            return self._close()
        return Step.MORE

    def _take(self) -> bool:
        """Takes in the value of a name; False: this is no call."""
        text = "".join(self._parts)
        if self._name == "name" and self._call.name is None:
            if not _NAME.fullmatch(text) or not self._is_known(text):
                return False
            self._call.name = text
            self._begin(self._call)
        elif self._name in _ARGUMENTS and self._parts is not self._call.arguments:
            self._call.arguments.append(text)
        elif self._name == "id" and self._call.name is None and _NAME.fullmatch(text):
            self._call.id = text
        return True

    def _close(self) -> Step:
        if self._call.name is None:
            return Step.WRONG
        if not any(self._call.arguments):
            self._call.arguments.append("{}")
        return Step.DONE


def _is_escaped(characters: Sequence[str]) -> bool:
    """Whether an odd number of backslashes stands before the last one."""
    count = 0
    while characters[-2 - count] == "\\":
        count += 1
    return count % 2 == 1


def _said(text: str) -> str:
    """What a text of JSON says; itself, where it is damaged."""
    try:
        said = json.loads(text, strict=False)
    except ValueError:
        return text[1:-1]
    return said if isinstance(said, str) else text


PAYLOADS: Final[dict[str, type[JsonCalls | NamedCall | TaggedCalls]]] = {
    "json": JsonCalls,
    "named": NamedCall,
    "tagged": TaggedCalls,
}
"""What reads each kind of payload."""
