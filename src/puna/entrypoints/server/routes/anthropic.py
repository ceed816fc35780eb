"""Anthropic's messages, translated to and from chat completions."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from puna.entrypoints.openai.requests import Endpoint
from puna.entrypoints.outputs import AnswerMessage, CompletionOutput, RequestOutput
from puna.entrypoints.server.asked import prepared
from puna.entrypoints.server.body import read_object
from puna.entrypoints.server.generation import Generation, read_call, unless_disconnected
from puna.entrypoints.server.operation import Operation
from puna.entrypoints.server.problems import anthropic_error
from puna.entrypoints.server.routes.openai import json_response, message_of, note_ignored
from puna.entrypoints.server.state import Server, server_of, timeline_of
from puna.entrypoints.server.streaming import EventStream, event
from puna.entrypoints.tool_calls import message_delta
from puna.errors import InvalidRequestError, PunaError

__all__ = ["OPERATIONS"]

_SAME: Final = frozenset({"model", "temperature", "top_p", "top_k", "stream"})
_OURS: Final = frozenset({"max_tokens", "messages", "system", "stop_sequences", "thinking", "tools", "tool_choice"})
_LABELS: Final = frozenset({"metadata", "service_tier", "cache_control"})


def _chat_body(body: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The chat completion that a body asks for, and names of fields that are not known."""
    stated = {name: value for name, value in body.items() if value is not None}
    chat = {name: stated[name] for name in _SAME if name in stated}
    if (stops := stated.get("stop_sequences")) is not None:
        chat["stop"] = stops
    if "max_tokens" in stated:
        chat["max_tokens"] = stated["max_tokens"]
    chat["messages"] = _system(stated.get("system")) + _messages(stated.get("messages"))
    if chat["messages"][-1]["role"] == "assistant":
        chat["continue_final_message"] = True  # the answer is begun, as this interface has it
    if (tools := stated.get("tools")) is not None:
        chat["tools"] = [_tool(tool) for tool in tools] if isinstance(tools, list) else tools
    if (choice := stated.get("tool_choice")) is not None:
        chat |= _tool_choice(choice)
    thinking = stated.get("thinking")
    if isinstance(thinking, Mapping) and thinking.get("type") in ("enabled", "disabled"):
        chat["chat_template_kwargs"] = {"enable_thinking": thinking["type"] == "enabled"}
    elif thinking is not None:
        raise InvalidRequestError("its type must be enabled or disabled", param="thinking")
    return chat, tuple(sorted(stated.keys() - _SAME - _OURS - _LABELS))


def _system(system: Any) -> list[dict[str, Any]]:
    if system is None:
        return []
    return [{"role": "system", "content": _text(system, "system")}]


def _text(content: Any, param: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(
        isinstance(block, Mapping) and block.get("type") == "text" and isinstance(block.get("text"), str)
        for block in content
    ):
        raise InvalidRequestError("must be a text or blocks of type text", param=param)
    return "".join(block["text"] for block in content)


def _messages(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise InvalidRequestError("must be a list that is not empty", param="messages")
    found: list[dict[str, Any]] = []
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ("user", "assistant"):
            raise InvalidRequestError("each message has a role, user or assistant", param="messages")
        found += _blocks(role, message.get("content"))
    return found


def _blocks(role: str, content: Any) -> list[dict[str, Any]]:
    """A message's blocks as messages of a chat: results of tools are messages of their own there."""
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list) or not content:
        raise InvalidRequestError("content must be a text or a list of blocks", param="messages")
    results: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    texts: list[str] = []
    for block in content:
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "thinking" | "redacted_thinking"} if role == "assistant":
                pass  # templates leave earlier thoughts out
            case {"type": "tool_use", "id": str(name), "name": str(function), "input": dict(values)} if (
                role == "assistant"
            ):
                calls.append({"id": name, "type": "function", "function": {"name": function, "arguments": values}})
            case {"type": "tool_result", "tool_use_id": str(name)} if role == "user":
                said = block.get("content", "")
                results.append({"role": "tool", "tool_call_id": name, "content": _text(said, "messages")})
            case _:
                kind = block.get("type") if isinstance(block, Mapping) else type(block).__name__
                raise InvalidRequestError(f"blocks of type {str(kind)[:60]!r} are not supported", param="messages")
    if not texts and not calls:
        return results
    message: dict[str, Any] = {"role": role, "content": "".join(texts)}
    return [*results, {**message, "tool_calls": calls} if calls else message]


def _tool(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, Mapping) or not isinstance(tool.get("name"), str) or "input_schema" not in tool:
        raise InvalidRequestError("each tool has a name and an input_schema", param="tools")
    function = {"name": tool["name"], "parameters": tool["input_schema"]}
    if isinstance(tool.get("description"), str):
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> dict[str, Any]:
    kinds = {"auto": "auto", "any": "required", "none": "none"}
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind == "tool" and isinstance(choice.get("name"), str):
        found: dict[str, Any] = {"tool_choice": {"type": "function", "function": {"name": choice["name"]}}}
    elif kind in kinds:
        found = {"tool_choice": kinds[kind]}
    else:
        raise InvalidRequestError("its type must be auto, any, none or tool", param="tool_choice")
    if choice.get("disable_parallel_tool_use"):
        found["parallel_tool_calls"] = False
    return found


def _content(message: AnswerMessage) -> list[dict[str, Any]]:
    """An answer as blocks. A call that was cut off within its arguments is left out."""
    blocks: list[dict[str, Any]] = []
    if message.reasoning:
        blocks.append({"type": "thinking", "thinking": message.reasoning, "signature": ""})
    if message.content:
        blocks.append({"type": "text", "text": message.content})
    for call in message.tool_calls:
        with contextlib.suppress(ValueError):
            values = json.loads(call.arguments or "{}")
            blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": values})
    return blocks


def _stop_reason(choice: CompletionOutput) -> tuple[str | None, str | None]:
    """Why an answer ended, and the stop sequence that ended it."""
    if choice.finish_reason is None:
        return None, None
    if choice.finish_reason == "stop" and message_of(choice).tool_calls:
        return "tool_use", None
    if choice.finish_reason == "stop":
        is_text = isinstance(choice.stop_reason, str) and choice.stop_reason != "repetition"
        return ("stop_sequence", str(choice.stop_reason)) if is_text else ("end_turn", None)
    return "max_tokens", None


def _usage(output: RequestOutput) -> dict[str, int]:
    return {
        "input_tokens": len(output.prompt_token_ids) - output.num_cached_tokens,
        "cache_read_input_tokens": output.num_cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": sum(len(choice.token_ids) for choice in output.outputs),
    }


def _message(name: str, model: str) -> dict[str, Any]:
    return {"id": f"msg_{name}", "type": "message", "role": "assistant", "model": model}


async def _messages_route(request: Request) -> Response:
    server = server_of(request)
    server.host.require_ready()
    body = await read_object(request, server.limits)
    if body.get("max_tokens") is None:
        raise InvalidRequestError("is missing", param="max_tokens")
    chat, unknown = _chat_body(body)
    if unknown and server.settings.is_strict:
        raise InvalidRequestError("there is no such field here", param=unknown[0])
    call = read_call(server, Endpoint.CHAT, chat)
    headers = note_ignored(server, request, unknown)
    generation = await prepared(request, call.requests)
    head = _message(timeline_of(request).request_id, call.adapter or server.settings.model_name)
    if call.stream:
        return EventStream(_events(server, generation, head), server.limits.write_timeout_s, headers)
    (output,) = await unless_disconnected(request, generation.result())
    (choice,) = output.outputs
    reason, sequence = _stop_reason(choice)
    answer = {
        **head,
        "content": _content(message_of(choice)),
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": _usage(output),
    }
    return json_response(answer, headers=headers)


class _Blocks:
    """The blocks of a stream: one is open at a time."""

    def __init__(self) -> None:
        self._said: AnswerMessage | None = None
        self._kind: str | None = None
        self._index = -1

    def news(self, message: AnswerMessage) -> Iterator[bytes]:
        """The events for what is new in an answer."""
        delta = message_delta(self._said, message)
        self._said = message
        if delta.reasoning:
            yield from self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            yield self._delta({"type": "thinking_delta", "thinking": delta.reasoning})
        if delta.content:
            yield from self._open("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": delta.content})
        for call in delta.tool_calls:
            block: dict[str, Any] = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            yield from self._open(f"tool {call.index}", block)
            if call.arguments:
                yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def end(self) -> Iterator[bytes]:
        """Closes the block that is open."""
        if self._kind is not None:
            self._kind = None
            yield event({"type": "content_block_stop", "index": self._index}, "content_block_stop")

    def _open(self, kind: str, block: dict[str, Any]) -> Iterator[bytes]:
        if kind != self._kind:
            yield from self.end()
            self._kind = kind
            self._index += 1
            start = {"type": "content_block_start", "index": self._index, "content_block": block}
            yield event(start, "content_block_start")

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return event({"type": "content_block_delta", "index": self._index, "delta": delta}, "content_block_delta")


async def _events(server: Server, generation: Generation, head: dict[str, Any]) -> AsyncGenerator[bytes]:
    output, blocks = None, _Blocks()
    try:
        async for news in generation.news(server.limits.keepalive_interval_s):
            if news is None:
                yield event({"type": "ping"}, "ping")
                continue
            if output is None:
                usage = {**_usage(news[1]), "output_tokens": 0}
                first = {**head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
                yield event({"type": "message_start", "message": first}, "message_start")
            _, output = news
            for part in blocks.news(message_of(output.outputs[0])):
                yield part
        for part in blocks.end():
            yield part
        if output is not None:
            reason, sequence = _stop_reason(output.outputs[0])
            end = {"stop_reason": reason, "stop_sequence": sequence}
            yield event({"type": "message_delta", "delta": end, "usage": _usage(output)}, "message_delta")
        yield event({"type": "message_stop"}, "message_stop")
    except PunaError as error:
        yield event(anthropic_error(error), "error")
    finally:
        await generation.close()


async def _count_tokens(request: Request) -> Response:
    server = server_of(request)
    server.host.require_ready()
    chat, unknown = _chat_body(await read_object(request, server.limits))
    call = read_call(server, Endpoint.CHAT, chat)
    headers = note_ignored(server, request, unknown)
    _, ids = await server.llm.encode_prompt(call.requests[0])
    return json_response({"input_tokens": len(ids)}, headers=headers)


OPERATIONS: Final = (
    Operation(
        method="POST",
        path="/v1/messages",
        endpoint=_messages_route,
        summary="Answer a conversation.",
        tag="Anthropic",
        body="MessagesRequest",
        response="Message",
        media_types=("text/event-stream",),
    ),
    Operation(
        method="POST",
        path="/v1/messages/count_tokens",
        endpoint=_count_tokens,
        summary="How many tokens a conversation has.",
        tag="Anthropic",
        body="MessagesRequest",
        response="TokenCount",
    ),
)
