"""Answers as they are made: the chunks of OpenAI's streams, made of outputs that grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from puna.entrypoints.openai.requests import Call, Endpoint
from puna.entrypoints.openai.responses import (
    chat_logprobs,
    completion_logprobs,
    decoded,
    finish_reason,
    prompt_text,
    usage,
)
from puna.entrypoints.outputs import AnswerMessage, CompletionOutput, RequestOutput, ToolCallDelta
from puna.entrypoints.tool_calls import message_delta
from puna.tokenization import Tokenizer

__all__ = ["ChunkWriter"]


class _Sent:
    """What of a choice was sent."""

    def __init__(self) -> None:
        self.text = 0  # characters
        self.message: AnswerMessage | None = None
        self.tokens = 0
        self.offset = 0  # characters of the tokens whose log-probabilities were sent
        self.is_over = False


class ChunkWriter:
    """Makes the chunks of one streamed answer. Their parts add up to the body that is not streamed.

    Args:
        call: What was asked.
        name: The answer's id.
        model: What it calls the model.
        created: Seconds since 1970.
        tokenizer: The model's; None: it has none.
    """

    def __init__(self, call: Call, name: str, *, model: str, created: int, tokenizer: Tokenizer | None) -> None:
        self._call = call
        self._tokenizer = tokenizer
        self._is_chat = call.endpoint is Endpoint.CHAT
        self._head = {
            "id": name,
            "object": "chat.completion.chunk" if self._is_chat else "text_completion",
            "created": created,
            "model": call.adapter or model,
        }
        self._sent: dict[int, _Sent] = {}

    def news(self, number: int, output: RequestOutput) -> Iterator[dict[str, Any]]:
        """The chunks for what is new in an output.

        Args:
            number: Which of the call's requests it answers.
            output: The answer as far as it got.
        """
        for choice in output.outputs:
            index = number * len(output.outputs) + choice.index
            if index not in self._sent:
                self._sent[index] = _Sent()
                yield from self._begin(index, output)
            sent = self._sent[index]
            if sent.is_over:
                continue
            is_over = choice.finish_reason is not None and choice.error is None
            said = self._said(choice, sent)
            if said or len(choice.token_ids) > sent.tokens:
                logprobs = self._logprobs(choice, sent)
                extras = {"token_ids": list(choice.token_ids[sent.tokens :])} if self._call.returns_token_ids else {}
                sent.text, sent.tokens = len(choice.text), len(choice.token_ids)
                if said or logprobs is not None or extras:
                    yield self._chunk(index, said or self._nothing, logprobs, extras)
            if is_over:
                sent.is_over = True
                yield self._end(index, output, choice)

    def usage(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """The last chunk, where numbers of tokens are wanted."""
        return {**self._head, "choices": [], "usage": usage(outputs)}

    def _begin(self, index: int, output: RequestOutput) -> Iterator[dict[str, Any]]:
        """What comes before a choice's first token: the role, or the prompt that is echoed."""
        extras = {"prompt_token_ids": list(output.prompt_token_ids)} if self._call.returns_token_ids else {}
        if self._is_chat:
            choice = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            yield self._body({"index": index, **choice, **extras})
        elif self._call.echo or extras:
            text, logprobs = "", None
            if self._call.echo:
                text = prompt_text(output, self._tokenizer)
                tokens = output.prompt_token_ids
                if output.prompt_logprobs is not None and self._call.top_logprobs is not None:
                    logprobs = completion_logprobs(tokens, output.prompt_logprobs, self._call, self._tokenizer)
                self._sent[index].offset = sum(len(decoded([token], self._tokenizer)) for token in tokens)
            yield self._chunk(index, {"text": text}, logprobs, extras)

    @property
    def _nothing(self) -> dict[str, Any]:
        return {"delta": {"content": ""}} if self._is_chat else {"text": ""}

    def _said(self, choice: CompletionOutput, sent: _Sent) -> dict[str, Any]:
        """What is new of a choice's text; empty: nothing."""
        if choice.message is None or not self._is_chat:
            text = choice.text[sent.text :]
            if not text:
                return {}
            return {"delta": {"content": text}} if self._is_chat else {"text": text}
        delta = message_delta(sent.message, choice.message)
        sent.message = choice.message
        parts: dict[str, Any] = {}
        if delta.reasoning:
            parts["reasoning_content"] = delta.reasoning
        if delta.content:
            parts["content"] = delta.content
        if delta.tool_calls:
            parts["tool_calls"] = [_call(call) for call in delta.tool_calls]
        return {"delta": parts} if parts else {}

    def _logprobs(self, choice: CompletionOutput, sent: _Sent) -> dict[str, Any] | None:
        if choice.logprobs is None:
            return None
        tokens, positions = choice.token_ids[sent.tokens :], choice.logprobs[sent.tokens :]
        if self._is_chat:
            return chat_logprobs(self._call, tokens, positions, self._tokenizer)
        result = completion_logprobs(tokens, positions, self._call, self._tokenizer, sent.offset)
        sent.offset += sum(len(decoded([token], self._tokenizer)) for token in tokens)
        return result

    def _chunk(
        self, index: int, said: dict[str, Any], logprobs: dict[str, Any] | None, extras: dict[str, Any]
    ) -> dict[str, Any]:
        return self._body({"index": index, **said, "logprobs": logprobs, "finish_reason": None, **extras})

    def _end(self, index: int, output: RequestOutput, choice: CompletionOutput) -> dict[str, Any]:
        said: dict[str, Any] = {"delta": {}} if self._is_chat else {"text": ""}
        extras = {"stop_reason": choice.stop_reason, "seed": output.seed}
        return self._body({
            "index": index, **said, "logprobs": None, "finish_reason": finish_reason(choice), **extras
        })  # fmt: skip

    def _body(self, choice: dict[str, Any]) -> dict[str, Any]:
        body = {**self._head, "choices": [choice]}
        return {**body, "usage": None} if self._call.include_usage else body


def _call(delta: ToolCallDelta) -> dict[str, Any]:
    """What is new of a call: its name once, then parts of its arguments."""
    function = {"arguments": delta.arguments}
    if delta.id is None:
        return {"index": delta.index, "function": function}
    return {"index": delta.index, "id": delta.id, "type": "function", "function": {"name": delta.name, **function}}
