"""Adapters that are loaded and unloaded while the server runs: vLLM's two routes, confined to one directory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from puna.entrypoints.server.body import read_object
from puna.entrypoints.server.operation import Operation
from puna.entrypoints.server.problems import Refusal
from puna.entrypoints.server.state import Server, server_of
from puna.errors import AdapterError, InvalidRequestError

__all__ = ["OPERATIONS"]


async def _load(request: Request) -> Response:
    server, directory, body = await _read(request, {"lora_name", "lora_path", "load_inplace"})
    name, path = _text(body, "lora_name"), _text(body, "lora_path")
    inplace = body.get("load_inplace", False)
    if not isinstance(inplace, bool):
        raise InvalidRequestError("must be true or false", param="load_inplace")
    if name in server.settings.model_names:
        raise InvalidRequestError(f"{name!r} is the model's own name", param="lora_name")
    inside = await asyncio.to_thread(_inside, directory, name, path)
    await asyncio.to_thread(server.llm.load_lora_adapter, name, inside, load_inplace=inplace)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


async def _unload(request: Request) -> Response:
    server, _, body = await _read(request, {"lora_name", "lora_int_id"})
    name = _text(body, "lora_name")
    server.llm.unload_lora_adapter(name)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


async def _read(request: Request, known: set[str]) -> tuple[Server, Path, dict[str, Any]]:
    server = server_of(request)
    directory = server.settings.lora_dir
    if directory is None:
        message = "adapters cannot be loaded by request; --lora-dir DIR lets them be loaded from there"
        raise Refusal(404, "adapters_disabled", message)
    server.host.require_ready()
    body = await read_object(request, server.limits)
    if unknown := sorted(body.keys() - known):
        raise InvalidRequestError("there is no such field here", param=unknown[0])
    return server, directory, body


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidRequestError("must be a text that is not empty", param=name)
    return value


def _inside(directory: Path, name: str, path: str) -> Path:
    """The path of an adapter, if it really lies in the directory of adapters; links are followed first.

    Raises:
        AdapterError: it does not, or there is nothing; which of both is not told.
    """
    try:
        root = directory.resolve(strict=True)
        target = (root / path).resolve(strict=True)
        if target != root and target.is_relative_to(root):
            return target
    except (OSError, RuntimeError, ValueError):  # missing, a loop of links, a zero byte
        pass
    raise AdapterError(name, f"there is no {path!r} in the directory of adapters")


_BODY: Final = {
    "type": "object",
    "required": ["lora_name"],
    "properties": {"lora_name": {"type": "string"}},
}

OPERATIONS: Final = (
    Operation(
        method="POST",
        path="/v1/load_lora_adapter",
        endpoint=_load,
        summary="Load an adapter from the directory of adapters.",
        tag="Adapters",
        body={
            **_BODY,
            "required": ["lora_name", "lora_path"],
            "properties": {
                "lora_name": {"type": "string"},
                "lora_path": {"type": "string"},
                "load_inplace": {"type": "boolean", "default": False},
            },
        },
        media_types=("text/plain",),
        statuses=(200, 409),
    ),
    Operation(
        method="POST",
        path="/v1/unload_lora_adapter",
        endpoint=_unload,
        summary="Forget an adapter; requests under way go on with it.",
        tag="Adapters",
        body=_BODY,
        media_types=("text/plain",),
    ),
)
