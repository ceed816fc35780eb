"""The ASGI application: all routes behind one gate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from puna.entrypoints.server.gate import Gate, refuse_route
from puna.entrypoints.server.host import ModelHost
from puna.entrypoints.server.openapi import openapi_document
from puna.entrypoints.server.operation import Operation
from puna.entrypoints.server.routes import (
    adapters,
    anthropic,
    files,
    ollama,
    openai,
    operations,
    page,
    responses,
    texts,
)
from puna.entrypoints.server.routes.openai import json_response
from puna.entrypoints.server.settings import ServerSettings
from puna.entrypoints.server.state import Server

__all__ = ["all_operations", "create_app"]


def all_operations() -> tuple[Operation, ...]:
    """Every route of the server. A module of routes that is new is named here."""
    modules = (page, openai, adapters, texts, responses, files, anthropic, ollama, operations)
    return tuple(operation for module in modules for operation in module.OPERATIONS)


def create_app(settings: ServerSettings, host: ModelHost) -> Starlette:
    """The application; its lifespan loads the model and lets it end.

    Args:
        settings: How the server behaves.
        host: The model.
    """
    server = Server.of(settings, host)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        host.start()
        if server.batches is not None:
            server.batches.resume()
        try:
            yield
        finally:
            if server.batches is not None:
                await server.batches.close()
            await host.close()
            if server.tracing is not None:
                await asyncio.to_thread(server.tracing.close)

    served = all_operations()
    document = openapi_document(served, has_keys=bool(settings.api_keys), root_path=settings.root_path)

    async def describe(request: Request) -> Response:
        return json_response(document)

    shown = Operation(
        method="GET",
        path="/openapi.json",
        endpoint=describe,
        summary="This document.",
        tag="Operations",
        is_hidden=True,
    )
    open_paths = frozenset(operation.path for operation in served if not operation.needs_key)
    app = Starlette(
        routes=[operation.route() for operation in (*served, shown)],
        middleware=[Middleware(Gate, server=server, open_paths=open_paths)],
        exception_handlers={HTTPException: refuse_route},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.server = server
    return app
