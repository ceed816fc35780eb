"""The OpenAPI document of a server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from puna import __version__
from puna.entrypoints.server.operation import Operation
from puna.entrypoints.server.schemas import SCHEMAS, reference

__all__ = ["openapi_document"]

_PARAMETER: Final = re.compile(r"\{(\w+)(?::\w+)?\}")
_ERRORS: Final[Mapping[int, str]] = {
    400: "The request cannot be served as it is.",
    401: "An API key is missing or wrong.",
    404: "There is no such model, or no such thing.",
    408: "The body did not arrive in time.",
    413: "The body is too long.",
    415: "The body is of another media type.",
    429: "Too many requests wait; Retry-After says when to try again.",
    431: "The headers are too long.",
    500: "A fault of the server's own.",
    503: "The model is not ready, or no place became free in time.",
}
_OF_READING: Final = frozenset({401, 404, 431, 500, 503})  # what a route without a body may answer
_MORE: Final[Mapping[int, str]] = {
    409: "It has ended, or exists, already.",
}


def openapi_document(operations: Iterable[Operation], *, has_keys: bool, root_path: str) -> dict[str, Any]:
    """The document.

    Args:
        operations: The routes.
        has_keys: Whether requests need a key.
        root_path: Prefix under which the server is shown.
    """
    paths: dict[str, Any] = {}
    for operation in operations:
        if not operation.is_hidden:
            path = _PARAMETER.sub(r"{\1}", operation.path)
            paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, has_keys)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Puna", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": dict(SCHEMAS)},
    }
    if root_path:
        document["servers"] = [{"url": root_path}]
    if has_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return document


def _schema(schema: str | Mapping[str, Any]) -> dict[str, Any]:
    return reference(schema) if isinstance(schema, str) else dict(schema)


def _operation(operation: Operation, has_keys: bool) -> dict[str, Any]:
    name = re.sub(r"\W+", "_", f"{operation.method.lower()}{operation.path}").strip("_")
    result: dict[str, Any] = {"operationId": name, "summary": operation.summary, "tags": [operation.tag]}
    parameters: list[dict[str, Any]] = [
        {"name": found, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for found in _PARAMETER.findall(operation.path)
    ]
    parameters += [{"name": name, "in": "query", "schema": dict(schema)} for name, schema in operation.query.items()]
    if parameters:
        result["parameters"] = parameters
    if operation.body is not None:
        content = {operation.body_media_type: {"schema": _schema(operation.body)}}
        result["requestBody"] = {"required": True, "content": content}
    result["responses"] = _responses(operation)
    if has_keys and operation.needs_key:
        result["security"] = [{"key": []}]
    return result


def _responses(operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.response is not None:
        content["application/json"] = {"schema": _schema(operation.response)}
    for kind in operation.media_types:
        content[kind] = {"schema": {"type": "string"}}
    success = {"description": operation.summary, "content": content}
    responses: dict[str, Any] = {}
    path = operation.path
    style = "AnthropicError" if path.startswith("/v1/messages") else "OllamaError" if path[:5] == "/api/" else "Error"
    failure = {"application/json": {"schema": reference(style)}}
    takes = operation.body is not None or operation.query
    for status, text in _ERRORS.items():
        if takes or status in _OF_READING:
            responses[str(status)] = {"description": text, "content": failure}
    for status in operation.statuses:
        if status in _MORE:
            responses[str(status)] = {"description": _MORE[status], "content": failure}
    responses["200"] = success
    if not operation.needs_key:
        return {"200": success, "503": {**success, "description": "It is not ready."}, "431": responses["431"]}
    return dict(sorted(responses.items()))
