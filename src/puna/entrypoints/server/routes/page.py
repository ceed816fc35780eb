"""The chat page: its files, which anybody may read, and what it shows of the server's settings, which needs a key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from puna import __version__
from puna.entrypoints.server.operation import Endpoint, Operation
from puna.entrypoints.server.routes.openai import json_response
from puna.entrypoints.server.state import server_of
from puna.pipelines.sampling_params import SamplingParams
from puna.pipelines.sampling_ranges import field_range

__all__ = ["OPERATIONS"]

_TYPES: Final[Mapping[str, str]] = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Nothing comes from elsewhere, nothing inline runs, no string becomes markup, and no other page may frame this one.
_POLICY: Final = "; ".join((
    "default-src 'self'",
    "object-src 'none'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
))  # fmt: skip
_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, but asked for again: a newer server has a newer page
}
_SHOWN: Final = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "repetition_penalty", "seed")


def _file(data: bytes, media_type: str) -> Endpoint:
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag}

    async def serve(request: Request) -> Response:
        known = [name.strip().removeprefix("W/") for name in request.headers.get("if-none-match", "").split(",")]
        if tag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(data, headers={**headers, "Content-Type": media_type})

    return serve


async def _settings(request: Request) -> Response:
    """Sampling values of a request that states none, and their ranges; limits of the server."""
    server = server_of(request)
    stated = server.settings.sampling.over(server.llm.sampling_defaults)
    values = SamplingParams.from_input(None, stated)
    most = server.limits.max_output_tokens
    defaults = {name: getattr(values, name) for name in _SHOWN}
    if most is not None:
        defaults["max_tokens"] = min(most, values.max_tokens or most)
    ranges = {}
    for name in _SHOWN:
        kind, low, high, is_open = field_range(name)
        if name == "max_tokens" and most is not None:
            high = most
        ranges[name] = {"kind": kind, "low": low, "high": high, "is_low_left_out": is_open}
    return json_response({
        "version": __version__,
        "model": server.settings.model_name,
        "defaults": defaults,
        "ranges": ranges,
        "max_top_logprobs": server.limits.max_top_logprobs,
    })  # fmt: skip


def _operations() -> tuple[Operation, ...]:
    operations = [
        Operation(
            method="GET",
            path="/page/settings",
            endpoint=_settings,
            summary="What the chat page shows of the server's settings.",
            tag="Page",
            is_hidden=True,
        )
    ]
    for file in sorted(files("puna.entrypoints.server.page").iterdir(), key=lambda file: file.name):
        media_type = _TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            operations.append(
                Operation(
                    method="GET",
                    path="/" if file.name == "index.html" else f"/page/{file.name}",
                    endpoint=_file(file.read_bytes(), media_type),
                    summary="The chat page.",
                    tag="Page",
                    is_hidden=True,
                    needs_key=False,
                )
            )
    return tuple(operations)


OPERATIONS: Final = _operations()
