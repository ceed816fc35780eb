"""Ollama's interface, translated to and from OpenAI's. The server has one model; nothing is pulled or deleted."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from puna import __version__
from puna.entrypoints.openai.requests import Endpoint
from puna.entrypoints.outputs import AnswerMessage, RequestOutput
from puna.entrypoints.server.asked import embedded, prepared
from puna.entrypoints.server.body import read_object
from puna.entrypoints.server.generation import Generation, read_call, unless_disconnected
from puna.entrypoints.server.operation import Operation
from puna.entrypoints.server.problems import ollama_error
from puna.entrypoints.server.routes.openai import json_response, message_of, note_ignored
from puna.entrypoints.server.state import Server, server_of
from puna.entrypoints.server.streaming import EventStream, json_text
from puna.entrypoints.tool_calls import message_delta
from puna.errors import InvalidRequestError, ModelNotFoundError, PunaError

__all__ = ["OPERATIONS"]

_OPTIONS: Final = {  # Ollama's name -> ours
    "num_predict": "max_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "seed": "seed",
    "stop": "stop",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "penalty_window",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}
# How a model is loaded and kept: this server decided that when it started.
_LOADING: Final = frozenset({
    *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "numa", "num_keep"),
    "low_vram",
})  # fmt: skip
_FIELDS: Final = frozenset({"model", "options", "stream", "keep_alive", "format", "think"})
_CHAT: Final = _FIELDS | {"messages", "tools"}
_GENERATE: Final = _FIELDS | {"prompt", "system", "raw", "suffix", "images", "template", "context"}
_NS: Final = 1e9

_Part: TypeAlias = Callable[[AnswerMessage], dict[str, Any]]


def _stamp() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _common(server: Server, stated: dict[str, Any], known: frozenset[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields of OpenAI's body that both routes have, and names of fields that are not known."""
    options = stated.get("options", {})
    if not isinstance(options, Mapping):
        raise InvalidRequestError("must be an object", param="options")
    body: dict[str, Any] = {"model": _model_name(server, stated.get("model")), "stream": stated.get("stream", True)}
    for name, value in options.items():
        if name in _OPTIONS and value is not None:
            body[_OPTIONS[name]] = value
    if isinstance(body.get("max_tokens"), int) and body["max_tokens"] < 0:
        del body["max_tokens"]  # -1: no limit
    if body.get("penalty_window") in (0, -1):
        del body["penalty_window"]
    if (form := stated.get("format")) not in (None, ""):
        is_schema = isinstance(form, Mapping)
        schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": form, "strict": True}}
        body["response_format"] = schema if is_schema else {"type": "json_object"}
        if not is_schema and form != "json":
            raise InvalidRequestError("must be json or a JSON schema", param="format")
    if (think := stated.get("think")) is not None:
        body["chat_template_kwargs"] = {"enable_thinking": bool(think)}
    for name in ("images", "suffix", "template", "context"):
        if stated.get(name):
            raise InvalidRequestError("is not supported", param=name)
    unknown = {*(stated.keys() - known), *(options.keys() - _OPTIONS.keys() - _LOADING)}
    if unknown and server.settings.is_strict:
        raise InvalidRequestError("there is no such field here", param=min(unknown))
    return body, tuple(sorted(unknown))


def _model_name(server: Server, name: Any) -> str:
    """The served name that is meant; tags are Ollama's own."""
    if not isinstance(name, str):
        raise InvalidRequestError("is missing", param="model")
    names = _names(server)
    plain = name if name in names else name.removesuffix(":latest")
    if plain in names:
        return plain
    raise ModelNotFoundError(name, "it is not loaded", choices=names)


def _names(server: Server) -> list[str]:
    return [*server.settings.model_names, *server.adapter_names]


def _head(server: Server, adapter: str | None) -> dict[str, Any]:
    return {"model": adapter or server.settings.model_name, "created_at": _stamp()}


async def _stated(request: Request, server: Server) -> dict[str, Any]:
    server.host.require_ready()
    return {name: value for name, value in (await read_object(request, server.limits)).items() if value is not None}


async def _chat(request: Request) -> Response:
    server = server_of(request)
    stated = await _stated(request, server)
    body, unknown = _common(server, stated, _CHAT)
    messages = stated.get("messages")
    if messages == []:
        return json_response(_loaded(server, body, {"message": {"role": "assistant", "content": ""}}))
    if isinstance(messages, list) and any(isinstance(item, Mapping) and item.get("images") for item in messages):
        raise InvalidRequestError("pictures are not supported", param="messages")
    body |= {"messages": messages, "tools": stated.get("tools")}
    return await _answer(request, server, Endpoint.CHAT, body, unknown, _said)


def _said(message: AnswerMessage) -> dict[str, Any]:
    said: dict[str, Any] = {"role": "assistant", "content": message.content}
    if message.reasoning:
        said["thinking"] = message.reasoning
    calls = []
    for call in message.tool_calls:
        with contextlib.suppress(ValueError):  # cut off within its arguments
            calls.append({"function": {"name": call.name, "arguments": json.loads(call.arguments or "{}")}})
    return {"message": {**said, "tool_calls": calls} if calls else said}


def _written(message: AnswerMessage) -> dict[str, Any]:
    thought = {"thinking": message.reasoning} if message.reasoning else {}
    return {"response": message.content, **thought}


async def _generate(request: Request) -> Response:
    server = server_of(request)
    stated = await _stated(request, server)
    body, unknown = _common(server, stated, _GENERATE)
    prompt, system, is_raw = stated.get("prompt", ""), stated.get("system"), stated.get("raw", False)
    if not isinstance(prompt, str) or not isinstance(system or "", str):
        raise InvalidRequestError("must be a text", param="prompt")
    if not prompt:
        return json_response(_loaded(server, body, {"response": ""}))
    if is_raw or server.llm.tokenizer.chat_template is None:
        body.setdefault("max_tokens", server.llm.max_model_len)
        return await _answer(request, server, Endpoint.COMPLETIONS, {**body, "prompt": prompt}, unknown, _written)
    messages = [{"role": "system", "content": system}] if system else []
    body["messages"] = [*messages, {"role": "user", "content": prompt}]
    return await _answer(request, server, Endpoint.CHAT, body, unknown, _written)


def _loaded(server: Server, body: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """What is answered where nothing is asked: Ollama loads a model so."""
    return {**_head(server, server.adapter_of(body["model"])), **part, "done": True, "done_reason": "load"}


async def _answer(
    request: Request, server: Server, endpoint: Endpoint, body: dict[str, Any], unknown: tuple[str, ...], part: _Part
) -> Response:
    call = read_call(server, endpoint, body)
    headers = note_ignored(server, request, unknown)
    generation = await prepared(request, call.requests)
    if call.stream:
        lines = _lines(server, call.adapter, generation, part)
        return EventStream(lines, server.limits.write_timeout_s, headers, "application/x-ndjson")
    (output,) = await unless_disconnected(request, generation.result())
    said = part(message_of(output.outputs[0]))
    return json_response({**_head(server, call.adapter), **said, **_end(output)}, headers=headers)


async def _lines(
    server: Server, adapter: str | None, generation: Generation, part: _Part
) -> AsyncGenerator[bytes]:
    output, before = None, None
    try:
        async for news in generation.news():
            assert news is not None
            _, output = news
            message = message_of(output.outputs[0])
            delta = message_delta(before, message)
            before = message
            if delta.content or delta.reasoning:
                part_of = AnswerMessage(content=delta.content or "", reasoning=delta.reasoning)
                yield json_text({**_head(server, adapter), **part(part_of), "done": False}) + b"\n"
        if output is not None:
            calls = message_of(output.outputs[0]).tool_calls  # whole, at the end: this interface has no parts of calls
            last = part(AnswerMessage(content="", tool_calls=calls))
            yield json_text({**_head(server, adapter), **last, **_end(output)}) + b"\n"
    except PunaError as error:
        yield json_text(ollama_error(error)) + b"\n"
    finally:
        await generation.close()


def _end(output: RequestOutput) -> dict[str, Any]:
    """How an answer ended; durations in nanoseconds."""
    timings, choice = output.timings, output.outputs[0]
    first, total = timings.first_token_s or 0.0, timings.finished_s or 0.0
    return {
        "done": True,
        "done_reason": "stop" if choice.finish_reason == "stop" else "length",
        "total_duration": int(total * _NS),
        "load_duration": 0,
        "prompt_eval_count": len(output.prompt_token_ids),
        "prompt_eval_duration": int(first * _NS),
        "eval_count": len(choice.token_ids),
        "eval_duration": int((total - first) * _NS),
    }


async def _embed(request: Request) -> Response:
    server, begin = server_of(request), time.perf_counter()
    stated = await _stated(request, server)
    is_old = request.url.path.endswith("/embeddings")
    text = stated.get("prompt" if is_old else "input")
    known = {"model", "input", "prompt", "truncate", "options", "keep_alive"}
    body = {"model": _model_name(server, stated.get("model")), "input": text, "dimensions": stated.get("dimensions")}
    call = read_call(server, Endpoint.EMBEDDINGS, body)
    headers = note_ignored(server, request, tuple(sorted(stated.keys() - known - {"dimensions"})))
    vectors, lengths = await embedded(request, call.requests)
    if call.dimensions not in (None, vectors.shape[1]):
        raise InvalidRequestError(f"this model's have {vectors.shape[1]}, got {call.dimensions}", param="dimensions")
    if is_old:
        return json_response({"embedding": vectors[0].tolist()}, headers=headers)
    return json_response(
        {
            "model": call.adapter or server.settings.model_name,
            "embeddings": vectors.tolist(),
            "total_duration": int((time.perf_counter() - begin) * _NS),
            "load_duration": 0,
            "prompt_eval_count": sum(lengths),
        },
        headers=headers,
    )


def _details(server: Server) -> dict[str, Any]:
    config = server.llm.model.pipeline_config.model
    family = str(config.huggingface_config.model_type)
    return {
        "parent_model": "",
        "format": config.weights_format.value,
        "family": family,
        "families": [family],
        "parameter_size": _short(_num_parameters(config)),
        "quantization_level": config.resolved_encoding.value.upper(),
    }


def _num_parameters(config: Any) -> int:
    return sum(math.prod(weight.shape) for _, weight in config.weights.items())


def _short(count: int) -> str:
    """As 134.5M."""
    scale, letter = next((pair for pair in ((1e9, "B"), (1e6, "M"), (1e3, "K")) if count >= pair[0]), (1.0, ""))
    return f"{count / scale:.1f}{letter}"


def _entry(server: Server, name: str) -> dict[str, Any]:
    """A name in a list. There is no digest: nothing can be pulled by one."""
    changed = datetime.fromtimestamp(server.host.created, UTC).isoformat().replace("+00:00", "Z")
    size = sum(weight.nbytes for _, weight in server.llm.model.pipeline_config.model.weights.items())
    return {"name": name, "model": name, "modified_at": changed, "size": size, "digest": "",
            "details": _details(server)}  # fmt: skip


async def _tags(request: Request) -> Response:
    server = server_of(request)
    server.host.require_ready()
    return json_response({"models": [_entry(server, name) for name in _names(server)]})


async def _ps(request: Request) -> Response:
    server = server_of(request)
    server.host.require_ready()
    more = {"expires_at": "9999-12-31T23:59:59Z", "size_vram": 0, "context_length": server.llm.max_model_len}
    return json_response({"models": [{**_entry(server, name), **more} for name in _names(server)]})


async def _show(request: Request) -> Response:
    server = server_of(request)
    stated = await _stated(request, server)
    _model_name(server, stated.get("model", stated.get("name")))
    llm = server.llm
    template = llm.tokenizer.chat_template if llm.has_tokenizer else None
    return json_response(
        {
            "modelfile": "",
            "parameters": "",
            "template": template.texts["default"] if template is not None else "",
            "details": _details(server),
            "model_info": _model_info(server),
            "capabilities": ["completion", "embedding"],
        }
    )


def _model_info(server: Server) -> dict[str, Any]:
    """Keys as GGUF files have them."""
    config = server.llm.model.pipeline_config.model
    values = config.huggingface_config
    family = str(values.model_type)
    return {
        "general.architecture": family,
        "general.parameter_count": _num_parameters(config),
        f"{family}.context_length": server.llm.max_model_len,
        f"{family}.embedding_length": values.hidden_size,
        f"{family}.block_count": values.num_hidden_layers,
        f"{family}.attention.head_count": values.num_attention_heads,
    }


async def _version(request: Request) -> Response:
    return json_response({"version": __version__})


def _post(path: str, endpoint: Any, summary: str, body: str, response: str, *media_types: str) -> Operation:
    return Operation(
        method="POST",
        path=path,
        endpoint=endpoint,
        summary=summary,
        tag="Ollama",
        body=body,
        response=response,
        media_types=media_types,
    )


def _get(path: str, endpoint: Any, summary: str, response: str) -> Operation:
    return Operation(method="GET", path=path, endpoint=endpoint, summary=summary, tag="Ollama", response=response)


OPERATIONS: Final = (
    _post("/api/chat", _chat, "Answer a conversation.", "OllamaChatRequest", "OllamaChat", "application/x-ndjson"),
    _post("/api/generate", _generate, "Answer or continue a text.", "OllamaGenerateRequest", "OllamaText",
          "application/x-ndjson"),
    _post("/api/embed", _embed, "Turn texts into vectors.", "OllamaEmbedRequest", "OllamaEmbeddings"),
    _post("/api/embeddings", _embed, "Turn a text into a vector.", "OllamaEmbeddingRequest", "OllamaEmbedding"),
    _post("/api/show", _show, "Describe the model.", "OllamaShowRequest", "OllamaModelDescription"),
    _get("/api/tags", _tags, "The models that requests can name.", "OllamaModelList"),
    _get("/api/ps", _ps, "The models that are loaded.", "OllamaModelList"),
    _get("/api/version", _version, "The version of Puna.", "OllamaVersion"),
)  # fmt: skip
