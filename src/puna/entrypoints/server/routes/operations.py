"""For whoever runs the server: health, metrics, version, what happened to a request."""

from __future__ import annotations

from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from puna import __version__
from puna.entrypoints.server.operation import Operation
from puna.entrypoints.server.problems import Refusal
from puna.entrypoints.server.routes.openai import json_response
from puna.entrypoints.server.state import server_of, tenant_of

__all__ = ["OPERATIONS"]


async def _health(request: Request) -> Response:
    """Nothing here needs a key, so nothing is told but the state."""
    host = server_of(request).host
    if host.state == "ready":
        return json_response({"status": "ok"})
    return json_response({"status": host.state}, 503, {"Retry-After": "2"})


async def _metrics(request: Request) -> Response:
    return Response(server_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def _version(request: Request) -> Response:
    return json_response({"version": __version__})


async def _timeline(request: Request) -> Response:
    name = request.path_params["request_id"]
    found = server_of(request).timelines.find(name, tenant_of(request).name)
    if found is None:
        raise Refusal(404, "request_not_found", "no request of this id is remembered")
    return json_response(found.body())


_STATUS: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"enum": ["ok", "loading", "draining", "failed"]}},
}
_VERSION: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["version"],
    "properties": {"version": {"type": "string"}},
}

OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/health",
        endpoint=_health,
        summary="200 while requests are served, 503 while the model loads and while the server drains.",
        tag="Operations",
        response=_STATUS,
        statuses=(200, 503),
        needs_key=False,
    ),
    Operation(
        method="GET",
        path="/ping",
        endpoint=_health,
        summary="As /health.",
        tag="Operations",
        response=_STATUS,
        statuses=(200, 503),
        needs_key=False,
    ),
    Operation(
        method="GET",
        path="/metrics",
        endpoint=_metrics,
        summary="Metrics in Prometheus' text format.",
        tag="Operations",
        media_types=("text/plain",),
    ),
    Operation(
        method="GET",
        path="/version",
        endpoint=_version,
        summary="The version of Puna.",
        tag="Operations",
        response=_VERSION,
    ),
    Operation(
        method="GET",
        path="/v1/requests/{request_id}",
        endpoint=_timeline,
        summary="What happened to one of the latest requests, and when.",
        tag="Operations",
        response="Timeline",
        statuses=(200, 404),
    ),
)
