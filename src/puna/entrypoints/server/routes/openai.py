"""OpenAI's chat completions and completions, whole and streamed, and the list of models."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from puna.entrypoints.openai.requests import Call, Endpoint
from puna.entrypoints.openai.responses import generated_body
from puna.entrypoints.openai.streams import ChunkWriter
from puna.entrypoints.outputs import AnswerMessage, CompletionOutput
from puna.entrypoints.server.asked import prepared
from puna.entrypoints.server.body import read_object
from puna.entrypoints.server.generation import Generation, read_call, unless_disconnected
from puna.entrypoints.server.operation import Operation
from puna.entrypoints.server.problems import problem_body
from puna.entrypoints.server.state import Server, server_of, timeline_of
from puna.entrypoints.server.streaming import DONE, PING, EventStream, event, json_text
from puna.errors import PunaError
from puna.tokenization import Tokenizer

__all__ = ["OPERATIONS", "json_response", "message_of", "model_entry", "note_ignored", "tokenizer_of"]

_log = logging.getLogger("puna.server")


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(json_text(body), status, headers, "application/json")


def note_ignored(server: Server, request: Request, names: tuple[str, ...]) -> dict[str, str]:
    """Notes fields that are not known, in the log and the metrics; returns the header that names them."""
    if not names:
        return {}
    shown = ", ".join(name.encode("ascii", "backslashreplace").decode()[:64] for name in names[:16])
    shown = "".join(character if character.isprintable() else "?" for character in shown)
    server.metrics.unknown_fields(len(names))
    _log.warning("fields that are not known: %s", shown, extra={"request_id": timeline_of(request).request_id})
    return {"X-Ignored-Fields": shown}


def tokenizer_of(server: Server) -> Tokenizer | None:
    """The model's tokenizer, or None."""
    llm = server.llm
    return llm.tokenizer if llm.has_tokenizer else None


def message_of(choice: CompletionOutput) -> AnswerMessage:
    """A choice taken apart; of a plain text all of it is content."""
    return choice.message if choice.message is not None else AnswerMessage(content=choice.text)


async def _chat(request: Request) -> Response:
    return await _generate(request, Endpoint.CHAT)


async def _completions(request: Request) -> Response:
    return await _generate(request, Endpoint.COMPLETIONS)


async def _generate(request: Request, endpoint: Endpoint) -> Response:
    server = server_of(request)
    server.host.require_ready()
    call = read_call(server, endpoint, await read_object(request, server.limits))
    headers = note_ignored(server, request, call.ignored)
    generation = await prepared(request, call.requests)
    tokenizer = tokenizer_of(server)
    model, created = server.settings.model_name, int(time.time())
    if call.stream:
        name = f"{'chatcmpl' if endpoint is Endpoint.CHAT else 'cmpl'}-{timeline_of(request).request_id}"
        writer = ChunkWriter(call, name, model=model, created=created, tokenizer=tokenizer)
        chunks = _chunks(server, call, generation, writer)
        return EventStream(chunks, server.limits.write_timeout_s, headers)
    outputs = await unless_disconnected(request, generation.result())
    body = generated_body(call, outputs, model=model, created=created, tokenizer=tokenizer)
    return json_response(body, headers=headers)


async def _chunks(server: Server, call: Call, generation: Generation, writer: ChunkWriter) -> AsyncGenerator[bytes]:
    try:
        async for news in generation.news(server.limits.keepalive_interval_s):
            if news is None:
                yield PING
                continue
            for chunk in writer.news(*news):
                yield event(chunk)
        if call.include_usage:
            yield event(writer.usage([output for output in generation.latest if output is not None]))
    except PunaError as error:
        yield event(problem_body(error))
    finally:
        await generation.close()
    yield DONE


def model_entry(server: Server, name: str, *, is_adapter: bool = False) -> dict[str, Any]:
    """The entry of a model's or an adapter's name in the list of models."""
    llm = server.llm
    return {
        "id": name,
        "object": "model",
        "created": server.host.created,
        "owned_by": "puna",
        "root": name if is_adapter else server.settings.model_name,
        "parent": server.settings.model_name if is_adapter else None,
        "max_model_len": llm.max_model_len,
    }


async def _models(request: Request) -> Response:
    server = server_of(request)
    entries = [model_entry(server, name) for name in server.settings.model_names]
    entries += [model_entry(server, name, is_adapter=True) for name in server.adapter_names]
    return json_response({"object": "list", "data": entries})


async def _model(request: Request) -> Response:
    server, name = server_of(request), request.path_params["model"]
    return json_response(model_entry(server, name, is_adapter=server.adapter_of(name) is not None))


OPERATIONS: Final = (
    Operation(
        method="POST",
        path="/v1/chat/completions",
        endpoint=_chat,
        summary="Answer a conversation.",
        tag="OpenAI",
        body="ChatCompletionRequest",
        response="ChatCompletion",
        media_types=("text/event-stream",),
    ),
    Operation(
        method="POST",
        path="/v1/completions",
        endpoint=_completions,
        summary="Continue texts.",
        tag="OpenAI",
        body="CompletionRequest",
        response="Completion",
        media_types=("text/event-stream",),
    ),
    Operation(
        method="GET",
        path="/v1/models",
        endpoint=_models,
        summary="The models that requests can name.",
        tag="OpenAI",
        response="ModelList",
    ),
    Operation(
        method="GET",
        path="/v1/models/{model:path}",
        endpoint=_model,
        summary="One of the models.",
        tag="OpenAI",
        response="Model",
    ),
)
