"""What a model's chat template says about its answers: reasoning, tool calls, and the grammars for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from puna.entrypoints.reasoning import detect_reasoning
from puna.entrypoints.tool_calls import FORMATS, MessageParser, detect_format
from puna.entrypoints.tool_calls.grammars import behind_reasoning, tool_grammar
from puna.entrypoints.tool_calls.options import ToolOptions, read_tools
from puna.errors import InvalidRequestError
from puna.pipelines.request import GenerateRequest
from puna.pipelines.thinking import ThinkingSection
from puna.structured_output.grammars import grammar_of, literal
from puna.tokenization import ChatTemplate, Tokenizer

__all__ = ["Conversations", "Reading", "for_template"]


def for_template(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Messages as templates take them: the arguments of earlier calls are objects, where clients send JSON.

    Raises:
        InvalidRequestError: The arguments of a call are no JSON object.
    """
    return [_with_arguments(message) if _has_calls(message) else message for message in messages]


def _has_calls(message: object) -> bool:
    return isinstance(message, Mapping) and bool(message.get("tool_calls"))


def _with_arguments(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = message["tool_calls"]
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise InvalidRequestError("tool_calls must be a list of objects", param="messages")
    read = []
    for call in calls:
        function = call.get("function")
        if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
            try:
                arguments = json.loads(function["arguments"] or "{}")
            except (ValueError, RecursionError) as error:
                raise InvalidRequestError(f"the arguments of a call are no JSON: {error}", param="messages") from error
            call = {**call, "function": {**function, "arguments": arguments}}
        read.append(call)
    return {**message, "tool_calls": read}


@dataclass(frozen=True)
class Reading:
    """How the answer to a conversation is read, and what it is held to.

    Attributes:
        make_parser: A parser for each continuation.
        grammar: In the engine's form; None: any text.
        param: What errors about the grammar call it.
        shown: Control tokens that the parser must see in the text.
    """

    make_parser: partial[MessageParser]
    grammar: dict[str, Any] | None
    param: str | None
    shown: frozenset[int]


class Conversations:
    """Reads answers of one model.

    Args:
        tokenizer: Its tokenizer.
        template: Its chat template.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._tools = detect_format(template.texts.values())
        self._reasoning = detect_reasoning(template.texts.values())
        marks: Sequence[str] = self._tools.marks if self._tools is not None else ()
        if self._reasoning is not None:
            marks = (*marks, self._reasoning.begin, self._reasoning.end)
        ids = [self._control(mark) for mark in marks]
        self._shown = frozenset(token for token in ids if token is not None)

    def read(self, request: GenerateRequest, prompt: str) -> Reading:
        """How the answer to a request is read.

        Args:
            request: With messages.
            prompt: As the template rendered it.

        Raises:
            InvalidRequestError: It has tools, and the template speaks of no known way to call them; or tools that must
                be called and a form that the text must have.
            GrammarError: A part of a grammar is not supported.
        """
        options = read_tools(request.tools, request.tool_choice, request.parallel_tool_calls)
        if options is not None and self._tools is None:
            raise InvalidRequestError(
                f"this model's chat template speaks of no known form of tool calls; known are: {', '.join(FORMATS)}",
                param="tools",
            )
        is_open = self._is_open(prompt)
        grammar, param = self._grammar(request, options)
        if grammar is not None and self._reasoning is not None:
            grammar = behind_reasoning(grammar, self._reasoning, is_open, self._mark)
        parser = partial(
            MessageParser,
            self._tools if options is not None else None,
            [tool.name for tool in options.tools] if options is not None else (),
            self._reasoning,
            is_open,
        )
        return Reading(parser, grammar, param, self._shown)

    def thinking(self, prompt: Sequence[int], rendered: str | None) -> ThinkingSection | None:
        """Where the reasoning of an answer is, in tokens; None: the template marks none, or not with one token each.

        Args:
            prompt: The prompt's tokens.
            rendered: The conversation as the template rendered it, or None: the prompt is a text of the caller's own.
        """
        known = self._reasoning
        if known is None:
            return None
        begin, end = (self._tokenizer.token_to_id(mark) for mark in (known.begin, known.end))
        if begin is None or end is None:
            return None
        if rendered is None:
            return ThinkingSection.behind(np.array(prompt, dtype=np.int64), begin, end)
        return ThinkingSection(begin, end, self._is_open(rendered))

    def _is_open(self, prompt: str) -> bool:
        return self._reasoning is not None and prompt.rstrip().endswith(self._reasoning.begin)

    def _grammar(
        self, request: GenerateRequest, options: ToolOptions | None
    ) -> tuple[dict[str, Any] | None, str | None]:
        outputs = request.sampling_params.structured_outputs
        content = None if outputs is None else grammar_of(outputs)
        param = None if outputs is None else outputs.param
        if options is None or not (options.needs_grammar or content is not None):
            return content, param
        if request.sampling_params.ignore_eos:
            raise InvalidRequestError("does not go together with tools whose calls are enforced", param="ignore_eos")
        if options.must_call and content is not None:
            raise InvalidRequestError("does not go together with tools that must be called", param=param)
        assert self._tools is not None
        return tool_grammar(self._tools, options, self._mark, content), param or "tools"

    def _control(self, text: str) -> int | None:
        """The control token of this text, if there is one."""
        token = self._tokenizer.token_to_id(text)
        return token if token in self._tokenizer.special_token_ids else None

    def _mark(self, text: str) -> str:
        token = self._control(text) if text else None
        return literal(text) if token is None else f"<[{token}]>"
