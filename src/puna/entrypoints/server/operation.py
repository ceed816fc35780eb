"""`Operation`: a route, and what the OpenAPI document says about it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["Endpoint", "Operation"]

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A route.

    Attributes:
        method: `GET`, `POST` or `DELETE`.
        path: With `{name}` for parts that vary.
        endpoint: What serves it.
        summary: One line for people.
        tag: Which interface it belongs to.
        body: JSON schema of its body, or the name of one of `schemas.SCHEMAS`; None: it has none.
        response: The same for its answer; None: it is no JSON.
        media_types: Other media types of its answer.
        body_media_type: Media type of its body.
        statuses: Statuses that it answers, beside those of errors that any route may answer.
        query: Query parameters: name -> JSON schema.
        is_hidden: Not in the document.
        needs_key: Whether a key is asked for, where there are any; False only for what tells nothing.
    """

    method: str
    path: str
    endpoint: Endpoint
    summary: str
    tag: str
    body: str | Mapping[str, Any] | None = None
    response: str | Mapping[str, Any] | None = None
    media_types: tuple[str, ...] = ()
    body_media_type: str = "application/json"
    statuses: tuple[int, ...] = (200,)
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    is_hidden: bool = False
    needs_key: bool = True

    def route(self) -> Route:
        """The route, which notes its path for metrics."""

        async def serve(request: Request) -> Response:
            request.scope["puna"]["route"] = self.path
            return await self.endpoint(request)

        return Route(self.path, serve, methods=[self.method])
