"""OpenAI's responses: stateless and stored, whole and streamed."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from puna.entrypoints.openai.requests import Endpoint
from puna.entrypoints.outputs import AnswerMessage, RequestOutput
from puna.entrypoints.server.asked import prepared
from puna.entrypoints.server.body import read_object
from puna.entrypoints.server.generation import read_call, unless_disconnected
from puna.entrypoints.server.operation import Operation
from puna.entrypoints.server.problems import Refusal, problem_body
from puna.entrypoints.server.routes.openai import json_response, message_of, note_ignored
from puna.entrypoints.server.state import Server, server_of, tenant_of
from puna.entrypoints.server.stored import StoredResponse
from puna.entrypoints.server.streaming import PING, EventStream, event
from puna.entrypoints.tool_calls import message_delta
from puna.errors import InvalidRequestError, PunaError

__all__ = ["OPERATIONS"]

_SAME: Final = frozenset({"model", "temperature", "top_p", "stream", "parallel_tool_calls", "seed", "cache_salt"})
_OURS: Final = frozenset(
    {
        *("input", "instructions", "max_output_tokens", "store", "previous_response_id", "metadata", "text", "tools"),
        *("tool_choice", "reasoning", "truncation", "top_logprobs", "stream_options"),
    }
)
_LABELS: Final = frozenset({"user", "safety_identifier", "prompt_cache_key"})
# Fields of which only the value that asks for nothing is served.
_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "background": (False,),
    "include": ([],),
    "conversation": (),
    "prompt": (),
    "max_tool_calls": (),
    "service_tier": ("auto", "default"),
    "truncation": ("disabled",),
    "top_logprobs": (0,),
}


def _items(value: Any) -> list[dict[str, Any]]:
    """The input as items."""
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": value}]}]
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise InvalidRequestError("must be a text or a list of items", param="input")
    return value


def _messages(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items as messages of a chat."""
    messages: list[dict[str, Any]] = []
    for item in items:
        match item:
            case {"type": "function_call", "call_id": str(name), "name": str(function), "arguments": str(arguments)}:
                call = {"id": name, "type": "function", "function": {"name": function, "arguments": arguments}}
                if messages and messages[-1].get("tool_calls"):
                    messages[-1]["tool_calls"].append(call)
                else:
                    messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            case {"type": "function_call_output", "call_id": str(name), "output": str(output)}:
                messages.append({"role": "tool", "tool_call_id": name, "content": output})
            case {"type": "reasoning"}:
                pass  # templates leave earlier thoughts out
            case {"role": str(role)} if item.get("type", "message") == "message":
                messages.append({"role": role, "content": _text(item.get("content"))})
            case _:
                kind = str(item.get("type"))[:60]
                raise InvalidRequestError(f"items of type {kind!r} are not supported", param="input")
    return messages


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    kinds = ("input_text", "output_text", "text")
    if not isinstance(content, list) or not all(
        isinstance(part, Mapping) and part.get("type") in kinds and isinstance(part.get("text"), str)
        for part in content
    ):
        raise InvalidRequestError("the parts of a message must be texts", param="input")
    return "".join(part["text"] for part in content)


def _chat_body(stated: dict[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The chat completion that a response is made by."""
    chat = {name: stated[name] for name in _SAME if name in stated} | {"messages": messages}
    if (most := stated.get("max_output_tokens")) is not None:
        chat["max_tokens"] = most
    if (tools := stated.get("tools")) is not None:
        if not isinstance(tools, list):
            raise InvalidRequestError("must be a list", param="tools")
        chat["tools"] = [_tool(tool) for tool in tools]
    if (choice := stated.get("tool_choice")) is not None and chat.get("tools"):
        is_named = isinstance(choice, Mapping) and choice.get("type") == "function" and "name" in choice
        chat["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}} if is_named else choice
    text = stated.get("text", {})
    form = text.get("format") if isinstance(text, Mapping) else text
    if isinstance(form, Mapping) and form.get("type") == "json_schema":
        chat["response_format"] = {
            "type": "json_schema",
            "json_schema": {name: value for name, value in form.items() if name != "type"},
        }
    elif form is not None:
        chat["response_format"] = form
    reasoning = stated.get("reasoning", {})
    if not isinstance(reasoning, Mapping):
        raise InvalidRequestError("must be an object", param="reasoning")
    if (effort := reasoning.get("effort")) is not None:
        thinks = effort not in ("none", "minimal")
        chat["chat_template_kwargs"] = {"reasoning_effort": effort, "enable_thinking": thinks}
    return chat


def _tool(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        kind = tool.get("type") if isinstance(tool, Mapping) else tool
        raise InvalidRequestError(f"tools of type {str(kind)[:60]!r} are not supported", param="tools")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


class _Writer:
    """One response, as it is made: its body, and the events of its stream."""

    def __init__(self, model: str, stated: dict[str, Any], name: str) -> None:
        self._number = 0
        self._name = name
        self._said: AnswerMessage | None = None
        self._items: list[dict[str, Any]] = []  # as far as they got; the last one may be open
        self._is_open = False
        self.body: dict[str, Any] = {
            "id": f"resp_{name}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": stated.get("instructions"),
            "max_output_tokens": stated.get("max_output_tokens"),
            "metadata": stated.get("metadata", {}),
            "model": model,
            "output": [],
            "parallel_tool_calls": stated.get("parallel_tool_calls", True),
            "previous_response_id": stated.get("previous_response_id"),
            "reasoning": {"effort": stated.get("reasoning", {}).get("effort"), "summary": None},
            "store": stated.get("store", True),
            "temperature": stated.get("temperature", 1.0),
            "text": stated.get("text") or {"format": {"type": "text"}},
            "tool_choice": stated.get("tool_choice", "auto"),
            "tools": stated.get("tools", []),
            "top_p": stated.get("top_p", 1.0),
            "truncation": "disabled",
            "usage": None,
            "user": stated.get("user"),
        }

    def _event(self, kind: str, **values: Any) -> bytes:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number - 1, **values}, kind)

    def begin(self) -> list[bytes]:
        """What a stream begins with."""
        return [
            self._event("response.created", response=self.body),
            self._event("response.in_progress", response=self.body),
        ]

    def delta(self, output: RequestOutput) -> list[bytes]:
        """The events for what is new in the answer."""
        message = message_of(output.outputs[0])
        new = message_delta(self._said, message)
        self._said = message
        events: list[bytes] = []
        if new.reasoning:
            events += self._open(f"rs_{self._name}", {"type": "reasoning", "summary": [], "content": [_thought("")]})
            self._items[-1]["content"][0]["text"] += new.reasoning
            events.append(self._event("response.reasoning_text.delta", delta=new.reasoning, **self._place(True)))
        if new.content:
            item: dict[str, Any] = {"type": "message", "role": "assistant", "content": [_part("")]}
            events += self._open(f"msg_{self._name}_{len(self._items)}", item, "message")
            self._items[-1]["content"][0]["text"] += new.content
            events.append(
                self._event("response.output_text.delta", delta=new.content, logprobs=[], **self._place(True))
            )
        for call in new.tool_calls:
            if call.id is not None:
                item = {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": ""}
                events += self._open(f"fc_{call.id}", item)
            if call.arguments:
                self._items[-1]["arguments"] += call.arguments
                kind = "response.function_call_arguments.delta"
                events.append(self._event(kind, delta=call.arguments, **self._place(False)))
        return events

    def finish(self, output: RequestOutput) -> list[bytes]:
        """Completes the body; returns what a stream ends with."""
        events = self.delta(output)
        choice = output.outputs[0]
        is_whole = choice.finish_reason == "stop"
        status = "completed" if is_whole else "incomplete"
        events += self._close(status)
        cached = output.num_cached_tokens
        given, made = len(output.prompt_token_ids), len(choice.token_ids)
        self.body |= {
            "status": status,
            "incomplete_details": None if is_whole else {"reason": "max_output_tokens"},
            "output": self._items,
            "usage": {
                "input_tokens": given,
                "input_tokens_details": {"cached_tokens": cached},
                "output_tokens": made,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": given + made,
            },
        }
        return [*events, self._event(f"response.{status}", response=self.body)]

    def _place(self, is_part: bool) -> dict[str, Any]:
        place = {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}
        return {**place, "content_index": 0} if is_part else place

    def _open(self, name: str, item: dict[str, Any], kind: str | None = None) -> list[bytes]:
        """Begins an item, unless it is the one that is open; `kind`: any open one of this type is."""
        if self._is_open and (self._items[-1]["id"] == name or self._items[-1]["type"] == kind):
            return []
        events = self._close("completed")
        self._items.append({"id": name, "status": "in_progress", **item})
        self._is_open = True
        shown = {**self._items[-1], **({"content": []} if "content" in item else {})}
        events.append(self._event("response.output_item.added", output_index=len(self._items) - 1, item=shown))
        if "content" in item:
            events.append(
                self._event("response.content_part.added", part=dict(item["content"][0]), **self._place(True))
            )
        return events

    def _close(self, status: str) -> list[bytes]:
        """Ends the item that is open."""
        if not self._is_open:
            return []
        self._is_open = False
        item = self._items[-1]
        item["status"] = status
        events: list[bytes] = []
        if item["type"] == "function_call":
            kind, values = (
                "response.function_call_arguments.done",
                {"arguments": item["arguments"], "name": item["name"]},
            )
            events.append(self._event(kind, **values, **self._place(False)))
        else:
            part = dict(item["content"][0])
            is_text = item["type"] == "message"
            kind = "response.output_text.done" if is_text else "response.reasoning_text.done"
            events.append(
                self._event(kind, text=part["text"], **({"logprobs": []} if is_text else {}), **self._place(True))
            )
            events.append(self._event("response.content_part.done", part=part, **self._place(True)))
        return [*events, self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)]

    def fail(self, error: PunaError) -> bytes:
        """What a stream ends with when something goes wrong."""
        facts = problem_body(error)["error"]
        failure = {"code": facts["code"] or "server_error", "message": facts["message"]}
        self.body |= {"status": "failed", "error": failure}
        return self._event("response.failed", response=self.body)


def _thought(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


async def _create(request: Request) -> Response:
    server = server_of(request)
    server.host.require_ready()
    body = await read_object(request, server.limits)
    stated = {name: value for name, value in body.items() if value is not None}
    for field, values in _NEUTRAL.items():
        if field in stated and stated[field] not in values:
            raise InvalidRequestError("is not supported", param=field)
    unknown = tuple(sorted(stated.keys() - _SAME - _OURS - _LABELS - _NEUTRAL.keys()))
    if unknown and server.settings.is_strict:
        raise InvalidRequestError("there is no such field here", param=unknown[0])
    for field, kind in (("instructions", str), ("store", bool), ("metadata", dict), ("previous_response_id", str)):
        if field in stated and not isinstance(stated[field], kind):
            raise InvalidRequestError("has a value of another type than it takes", param=field)
    items = _items(stated.get("input"))
    earlier = _earlier(request, server, stated.get("previous_response_id"))
    conversation = [*earlier, *_messages(items)]
    system = [{"role": "system", "content": stated["instructions"]}] if "instructions" in stated else []
    call = read_call(server, Endpoint.CHAT, _chat_body(stated, system + conversation))
    headers = note_ignored(server, request, unknown)
    generation = await prepared(request, call.requests)
    writer = _Writer(call.adapter or server.settings.model_name, stated, uuid.uuid4().hex)
    tenant = tenant_of(request).name

    def keep(output: RequestOutput) -> None:
        if stated.get("store", True):
            said = [*conversation, _answer_message(message_of(output.outputs[0]))]
            server.responses.put(StoredResponse(tenant, writer.body, items, said))

    async def events() -> AsyncGenerator[bytes]:
        try:
            for part in writer.begin():
                yield part
            async for news in generation.news(server.limits.keepalive_interval_s):
                for part in [PING] if news is None else writer.delta(news[1]):
                    yield part
            (output,) = (latest for latest in generation.latest if latest is not None)
            for part in writer.finish(output):
                yield part
            keep(output)
        except PunaError as error:
            yield writer.fail(error)
        finally:
            await generation.close()

    if call.stream:
        return EventStream(events(), server.limits.write_timeout_s, headers)
    (output,) = await unless_disconnected(request, generation.result())
    writer.finish(output)
    keep(output)
    return json_response(writer.body, headers=headers)


def _answer_message(message: AnswerMessage) -> dict[str, Any]:
    """An answer as a message of a chat that goes on."""
    said: dict[str, Any] = {"role": "assistant", "content": message.content}
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.tool_calls
    ]
    return {**said, "tool_calls": calls} if calls else said


def _earlier(request: Request, server: Server, name: str | None) -> list[dict[str, Any]]:
    if name is None:
        return []
    found = server.responses.find(name, tenant_of(request).name)
    if found is None:
        raise Refusal(
            404, "previous_response_not_found", f"no response {name[:80]!r} is kept", param="previous_response_id"
        )
    return found.messages


def _found(request: Request) -> StoredResponse:
    found = server_of(request).responses.find(request.path_params["response_id"], tenant_of(request).name)
    if found is None:
        raise Refusal(404, "response_not_found", "no response of this id is kept")
    return found


async def _get(request: Request) -> Response:
    return json_response(_found(request).body)


async def _input_items(request: Request) -> Response:
    items = [{"id": f"item_{number}", **item} for number, item in enumerate(_found(request).input_items)]
    return json_response({"object": "list", "data": items, "has_more": False, "first_id": items[0]["id"],
                          "last_id": items[-1]["id"]})  # fmt: skip


async def _delete(request: Request) -> Response:
    name = _found(request).body["id"]
    server_of(request).responses.delete(name)
    return json_response({"id": name, "object": "response", "deleted": True})


def _operation(method: str, path: str, endpoint: Any, summary: str, response: str) -> Operation:
    return Operation(
        method=method,
        path=path,
        endpoint=endpoint,
        summary=summary,
        tag="OpenAI",
        body="ResponseRequest" if method == "POST" else None,
        response=response,
        media_types=("text/event-stream",) if method == "POST" else (),
        statuses=(200, 404),
    )


OPERATIONS: Final = (
    _operation("POST", "/v1/responses", _create, "Answer an input.", "Response"),
    _operation("GET", "/v1/responses/{response_id}", _get, "A stored response.", "Response"),
    _operation("DELETE", "/v1/responses/{response_id}", _delete, "Forget a stored response.", "Deleted"),
    _operation("GET", "/v1/responses/{response_id}/input_items", _input_items, "What it answered.", "ItemList"),
)
