"""Texts as vectors and as tokens: embeddings, similarity, ranking, tokens, rendered conversations."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from puna.entrypoints.openai.requests import Endpoint
from puna.entrypoints.openai.responses import embedding_body
from puna.entrypoints.server.asked import embedded
from puna.entrypoints.server.body import read_object
from puna.entrypoints.server.generation import read_call
from puna.entrypoints.server.operation import Operation
from puna.entrypoints.server.routes.openai import json_response, note_ignored
from puna.entrypoints.server.state import Server, server_of
from puna.errors import InvalidRequestError
from puna.pipelines.request import GenerateRequest

__all__ = ["OPERATIONS"]

_METHOD: Final = "cosine of mean-pooled embeddings"


async def _embeddings(request: Request) -> Response:
    server = server_of(request)
    server.host.require_ready()
    call = read_call(server, Endpoint.EMBEDDINGS, await read_object(request, server.limits))
    headers = note_ignored(server, request, call.ignored)
    assert call.pooling is not None
    vectors, lengths = await embedded(request, call.requests, pooling=call.pooling, normalize=call.normalize)
    body = embedding_body(call, vectors, model=server.settings.model_name, num_tokens=sum(lengths))
    return json_response(body, headers=headers)


async def _read(request: Request, known: frozenset[str]) -> tuple[Server, dict[str, Any], dict[str, str]]:
    """The body of a request that may have these fields and `model`, and the header that names others.

    `model` is left in the body where it names an adapter.
    """
    server = server_of(request)
    server.host.require_ready()
    body = {name: value for name, value in (await read_object(request, server.limits)).items() if value is not None}
    unknown = tuple(sorted(body.keys() - known - {"model", "user"}))
    if unknown and server.settings.is_strict:
        raise InvalidRequestError("there is no such field here", param=unknown[0])
    if server.adapter_of(body.get("model")) is None:
        body.pop("model", None)
    return server, body, note_ignored(server, request, unknown)


def _texts(server: Server, value: Any, param: str) -> list[str]:
    """One text or several; entries may be objects with `text`."""
    items = [value] if isinstance(value, str) else value
    if isinstance(items, list):
        items = [item.get("text") if isinstance(item, Mapping) else item for item in items]
    if not isinstance(items, list) or not items or not all(isinstance(item, str) for item in items):
        raise InvalidRequestError("must be a text or a list of texts", param=param)
    if len(items) > server.limits.max_prompts:
        raise InvalidRequestError(f"at most {server.limits.max_prompts}, got {len(items)}", param=param)
    return items


async def _score(request: Request) -> Response:
    server, body, headers = await _read(request, frozenset({"text_1", "text_2", "queries", "documents"}))
    first = _texts(server, body.get("text_1", body.get("queries")), "text_1")
    second = _texts(server, body.get("text_2", body.get("documents")), "text_2")
    if len(first) not in (1, len(second)):
        raise InvalidRequestError(f"one text, or as many as text_2 has ({len(second)})", param="text_1")
    adapter = body.get("model")
    requests = [GenerateRequest(text=text, adapter=adapter) for text in (*first, *second)]
    vectors, lengths = await embedded(request, requests)
    scores = (vectors[: len(first)] * vectors[len(first) :]).sum(axis=1)
    return json_response(
        {
            "id": f"score-{uuid.uuid4().hex}",
            "object": "list",
            "model": adapter or server.settings.model_name,
            "method": _METHOD,
            "data": [{"index": index, "object": "score", "score": float(score)} for index, score in enumerate(scores)],
            "usage": {"prompt_tokens": sum(lengths), "total_tokens": sum(lengths)},
        },
        headers=headers,
    )


async def _rerank(request: Request) -> Response:
    server, body, headers = await _read(request, frozenset({"query", "documents", "top_n", "return_documents"}))
    query, documents = body.get("query"), _texts(server, body.get("documents"), "documents")
    most, returns = body.get("top_n", len(documents)), body.get("return_documents", True)
    if not isinstance(query, str):
        raise InvalidRequestError("must be a text", param="query")
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise InvalidRequestError("must be an integer from 1", param="top_n")
    if not isinstance(returns, bool):
        raise InvalidRequestError("must be true or false", param="return_documents")
    adapter = body.get("model")
    requests = [GenerateRequest(text=text, adapter=adapter) for text in (query, *documents)]
    vectors, lengths = await embedded(request, requests)
    scores = (vectors[1:] * vectors[0]).sum(axis=1)
    order = sorted(range(len(documents)), key=lambda index: (-scores[index], index))[:most]
    results = [
        {
            "index": index,
            "relevance_score": float(scores[index]),
            **({"document": {"text": documents[index]}} if returns else {}),
        }
        for index in order
    ]
    return json_response(
        {
            "id": f"rerank-{uuid.uuid4().hex}",
            "model": adapter or server.settings.model_name,
            "method": _METHOD,
            "results": results,
            "usage": {"prompt_tokens": sum(lengths), "total_tokens": sum(lengths)},
        },
        headers=headers,
    )


_TOKENIZED: Final = frozenset({
    *("prompt", "content", "messages", "add_special_tokens", "return_token_strs"),
    *("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools"),
})  # fmt: skip


async def _tokenize(request: Request) -> Response:
    server, body, headers = await _read(request, _TOKENIZED)
    llm = server.llm
    specials, spelled = body.get("add_special_tokens", True), body.get("return_token_strs", False)
    if not isinstance(specials, bool) or not isinstance(spelled, bool):
        raise InvalidRequestError("must be true or false", param="add_special_tokens")
    if "messages" in body:
        own = ("prompt", "content", "add_special_tokens", "return_token_strs", "user")
        chat = {name: value for name, value in body.items() if name in _TOKENIZED and name not in own}
        call = read_call(server, Endpoint.CHAT, chat)
        _, ids = await llm.encode_prompt(call.requests[0])
    else:
        text = body.get("prompt", body.get("content"))
        if not isinstance(text, str):
            raise InvalidRequestError("must be a text", param="prompt")
        ids = await asyncio.to_thread(llm.tokenizer.encode, text, specials)
    found: dict[str, Any] = {"count": len(ids), "max_model_len": llm.max_model_len, "tokens": ids}
    if spelled:
        found["token_strs"] = [llm.tokenizer.id_to_token(token) for token in ids]
    return json_response(found, headers=headers)


async def _detokenize(request: Request) -> Response:
    server, body, headers = await _read(request, frozenset({"tokens", "skip_special_tokens"}))
    tokens, skips = body.get("tokens"), body.get("skip_special_tokens", False)
    tokenizer = server.llm.tokenizer
    if not isinstance(tokens, list) or not all(
        type(token) is int and 0 <= token < tokenizer.vocab_size for token in tokens
    ):
        raise InvalidRequestError(f"must be token ids from 0 to {tokenizer.vocab_size - 1}", param="tokens")
    if not isinstance(skips, bool):
        raise InvalidRequestError("must be true or false", param="skip_special_tokens")
    text = await asyncio.to_thread(tokenizer.decode, tokens, skips)
    return json_response({"prompt": text}, headers=headers)


async def _render(request: Request) -> Response:
    server = server_of(request)
    server.host.require_ready()
    call = read_call(server, Endpoint.CHAT, await read_object(request, server.limits))
    headers = note_ignored(server, request, call.ignored)
    text, ids = await server.llm.encode_prompt(call.requests[0])
    return json_response({"prompt": text, "prompt_token_ids": ids, "count": len(ids)}, headers=headers)


OPERATIONS: Final = (
    Operation(
        method="POST",
        path="/v1/embeddings",
        endpoint=_embeddings,
        summary="Turn texts into vectors.",
        tag="OpenAI",
        body="EmbeddingRequest",
        response="EmbeddingList",
    ),
    *(
        Operation(
            method="POST",
            path=path,
            endpoint=_score,
            summary="How similar texts are: the cosine of their mean-pooled embeddings.",
            tag="Texts",
            body="ScoreRequest",
            response="ScoreList",
        )
        for path in ("/v1/score", "/score")
    ),
    *(
        Operation(
            method="POST",
            path=path,
            endpoint=_rerank,
            summary="Order documents by similarity to a query: the cosine of mean-pooled embeddings.",
            tag="Texts",
            body="RerankRequest",
            response="RerankList",
        )
        for path in ("/v1/rerank", "/rerank")
    ),
    Operation(
        method="POST",
        path="/tokenize",
        endpoint=_tokenize,
        summary="Turn a text or a conversation into token ids.",
        tag="Texts",
        body="TokenizeRequest",
        response="TokenList",
    ),
    Operation(
        method="POST",
        path="/detokenize",
        endpoint=_detokenize,
        summary="Turn token ids into text.",
        tag="Texts",
        body="DetokenizeRequest",
        response="DetokenizedText",
    ),
    Operation(
        method="POST",
        path="/v1/chat/completions/render",
        endpoint=_render,
        summary="The prompt of a chat completion, as text and tokens; nothing is generated.",
        tag="Texts",
        body="ChatCompletionRequest",
        response="RenderedPrompt",
    ),
)
