"""The OpenAPI document says what is so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from puna.entrypoints.openai import requests
from puna.entrypoints.openai.requests import Endpoint
from puna.entrypoints.server.app import all_operations
from puna.entrypoints.server.openapi import openapi_document
from puna.entrypoints.server.schemas import SCHEMAS
from support.serving import serving
from support.tiny_model import write_tiny_model

BODIES = {
    Endpoint.CHAT: "ChatCompletionRequest",
    Endpoint.COMPLETIONS: "CompletionRequest",
    Endpoint.EMBEDDINGS: "EmbeddingRequest",
}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "logprobs": True}),
    ("/v1/completions", {"prompt": ["x", "y"], "max_tokens": 2, "logprobs": 1}),
    ("/v1/embeddings", {"input": "x"}),
    ("/v1/score", {"text_1": "x", "text_2": ["y"]}),
    ("/v1/rerank", {"query": "x", "documents": ["y"]}),
    ("/tokenize", {"prompt": "x"}),
    ("/detokenize", {"tokens": [5]}),
    ("/v1/chat/completions/render", {"messages": [{"role": "user", "content": "x"}]}),
    ("/v1/responses", {"input": "x", "max_output_tokens": 2}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}),
    ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "x"}]}),
    ("/api/chat", {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": False}),
    ("/api/generate", {"model": "tiny", "prompt": "x", "stream": False}),
    ("/api/embed", {"model": "tiny", "input": "x"}),
    ("/api/embeddings", {"model": "tiny", "prompt": "x"}),
    ("/api/show", {"model": "tiny"}),
]


def whole(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "components": {"schemas": dict(SCHEMAS)}}


@pytest.mark.parametrize(("endpoint", "name"), BODIES.items())
def test_every_field_that_is_read_is_named(endpoint: Endpoint, name: str) -> None:
    read = requests._FIELDS[endpoint]
    named = SCHEMAS[name]["properties"].keys()
    assert read <= named, read - named
    assert named - read <= {*requests._LABELS, *requests._NEUTRAL}, named - read


def test_answers_fit_their_schemas(tmp_path: Path) -> None:
    with serving(write_tiny_model(tmp_path), storage_dir=tmp_path / "state") as served:
        document = served.client.get("/openapi.json").json()
        assert document == json.loads(json.dumps(openapi_document(all_operations(), has_keys=False, root_path="")))
        for path, body in REQUESTS:
            operation = document["paths"][path]["post"]
            for schema in (*operation["requestBody"]["content"].values(),):
                jsonschema.validate(body, whole(schema["schema"]))
            response = served.post(path, **body)
            assert response.status_code == 200, (path, response.text)
            jsonschema.validate(
                response.json(), whole(operation["responses"]["200"]["content"]["application/json"]["schema"])
            )
            bad = served.post(path)
            jsonschema.validate(
                bad.json(), whole(operation["responses"]["400"]["content"]["application/json"]["schema"])
            )
        for path in ("/v1/models", "/v1/files", "/v1/batches", "/api/tags", "/api/version", "/version", "/health"):
            schema = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
            jsonschema.validate(served.client.get(path).json(), whole(schema))
