"""`MessageParser`: from the text of an answer to reasoning, content and tool calls, as it comes."""

from __future__ import annotations

import secrets
from collections.abc import Collection

from puna.entrypoints.outputs import AnswerMessage, MessageDelta, ToolCall, ToolCallDelta
from puna.entrypoints.reasoning import ReasoningFormat, ReasoningSplitter
from puna.entrypoints.tool_calls.formats import Marker, ToolCallFormat
from puna.entrypoints.tool_calls.payload import PAYLOADS, CallBuilder, JsonCalls, NamedCall, Step, TaggedCalls
from puna.tokenization import StopStringChecker

__all__ = ["MessageParser", "message_delta"]


class MessageParser:
    """Reads an answer. How its text is cut into pieces makes no difference, and what was told is never taken back.

    A text that begins like calls and is none is content. White space between content and calls belongs to neither.

    Args:
        tools: How tool calls are written; None: there are none.
        tool_names: What may be called.
        reasoning: How reasoning is marked; None: there is none.
        is_reasoning: Whether the prompt ends within the reasoning.
    """

    def __init__(
        self,
        tools: ToolCallFormat | None = None,
        tool_names: Collection[str] = (),
        reasoning: ReasoningFormat | None = None,
        is_reasoning: bool = False,
    ) -> None:
        self._format = tools
        self._names = frozenset(tool_names)
        self._splitter = None if reasoning is None else ReasoningSplitter(reasoning, is_reasoning)
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._space = ""  # white space of the content, held until more comes
        self._calls: list[CallBuilder] = []
        self._markers = {marker.begin: marker for marker in tools.markers if marker.begin} if tools else {}
        self._bare = next((marker for marker in tools.markers if not marker.begin), None) if tools else None
        self._openers = StopStringChecker(list(self._markers))
        self._is_fresh = True  # nothing of the content came yet
        self._payload: JsonCalls | NamedCall | TaggedCalls | None = None
        self._marker: Marker | None = None
        self._raw = ""  # of a payload without calls so far: content, if there will be none
        self._closing: str | None = None  # what came of the end of a payload
        self._num_before = 0  # calls before the payload

    def add(self, text: str) -> None:
        """Takes a piece of text."""
        if self._splitter is not None:
            reasoning, text = self._splitter.add(text)
            self._reasoning.append(reasoning)
        self._add_answer(text)

    def finish(self) -> None:
        """Takes in that nothing more comes."""
        if self._splitter is not None:
            reasoning, text = self._splitter.flush()
            self._reasoning.append(reasoning)
            self._add_answer(text)
        if isinstance(self._payload, TaggedCalls):
            self._payload.finish()
        if self._payload is not None and not self._has_calls:
            self._tell(self._raw)
        elif self._payload is None and self._closing is None:
            self._tell(self._openers.flush())
        if not self._calls:
            self._content.append(self._space)
        self._space = ""

    @property
    def message(self) -> AnswerMessage:
        """What came so far."""
        for parts in (self._reasoning, self._content):
            parts[:] = ["".join(parts)]
        return AnswerMessage(
            content=self._content[0],
            reasoning=None if self._splitter is None else self._reasoning[0],
            tool_calls=tuple(self._call(call) for call in self._calls),
        )

    @staticmethod
    def _call(call: CallBuilder) -> ToolCall:
        assert call.name is not None and call.id is not None
        call.arguments[:] = ["".join(call.arguments)]
        return ToolCall(id=call.id, name=call.name, arguments=call.arguments[0])

    def _add_answer(self, text: str) -> None:
        if self._format is None:
            self._content.append(text)
            return
        for character in text:
            self._push(character)

    def _push(self, character: str) -> None:
        if self._closing is not None:
            self._close(character)
        elif self._payload is not None:
            self._push_payload(character)
        elif self._is_fresh and self._bare is not None and character in "{[":
            self._open(self._bare)
            self._push_payload(character)
        else:
            result = self._openers.add(character)
            self._tell(result.text)
            if not character.isspace():
                self._is_fresh = False
            if result.stop is not None:
                self._openers = StopStringChecker(list(self._markers))
                self._open(self._markers[result.stop])

    def _open(self, marker: Marker) -> None:
        self._marker, self._raw, self._num_before = marker, marker.begin, len(self._calls)
        # Where nothing marks a call but its form, only known names are calls.
        is_known = self._names.__contains__ if not marker.begin else lambda _name: True
        self._payload = PAYLOADS[marker.payload](self._begin, is_known)

    @property
    def _has_calls(self) -> bool:
        return len(self._calls) > self._num_before

    def _begin(self, call: CallBuilder) -> None:
        if call.id is None:
            call.id = f"call_{secrets.token_hex(12)}"
        self._calls.append(call)
        self._space = ""

    def _push_payload(self, character: str) -> None:
        assert self._payload is not None and self._marker is not None
        if self._marker.end and self._payload.is_between and self._has_calls and character == self._marker.end[0]:
            self._payload, self._closing = None, ""
            self._close(character)
            return
        self._raw += character
        step = self._payload.push(character)
        if step is Step.DONE:
            self._payload, self._closing = None, ""
        elif step is Step.WRONG and not self._has_calls:
            raw, self._payload, self._is_fresh = self._raw, None, False
            # The marker was one by mistake; what follows may hold others.
            self._tell(raw[: len(self._marker.begin)])
            for part in raw[len(self._marker.begin) :]:
                self._push(part)
        elif step in (Step.AFTER, Step.WRONG):
            self._payload = None
            self._push(character)

    def _close(self, character: str) -> None:
        """Behind the calls: their end, which may be missing."""
        assert self._closing is not None and self._marker is not None
        seen = (self._closing + character).lstrip()
        if self._marker.end and self._marker.end.startswith(seen):
            self._closing = None if seen == self._marker.end else seen
            return
        self._closing = None
        for part in seen:
            self._push(part)

    def _tell(self, text: str) -> None:
        """Content, without white space around calls."""
        text = self._space + text
        if self._calls and not any(self._content):
            text = text.lstrip()
        told = text.rstrip()
        self._space = text[len(told) :]
        self._content.append(told)


def message_delta(before: AnswerMessage | None, after: AnswerMessage) -> MessageDelta:
    """What is new in a message since the last look; all deltas together are the message.

    Args:
        before: The message as it was; None: there was nothing.
        after: The message now.
    """
    before = before or AnswerMessage(content="", reasoning=None if after.reasoning is None else "")
    calls = []
    for index, call in enumerate(after.tool_calls):
        if index >= len(before.tool_calls):
            calls.append(ToolCallDelta(index=index, id=call.id, name=call.name, arguments=call.arguments))
        elif fresh := call.arguments[len(before.tool_calls[index].arguments) :]:
            calls.append(ToolCallDelta(index=index, arguments=fresh))
    return MessageDelta(
        content=after.content[len(before.content) :],
        reasoning=(after.reasoning or "")[len(before.reasoning or "") :],
        tool_calls=tuple(calls),
    )
