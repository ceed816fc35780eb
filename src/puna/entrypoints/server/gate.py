"""`Gate`: what every request passes: its id, its key, pages of other origins, errors, the log and the metrics."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.entrypoints.server.problems import Refusal, problem
from puna.entrypoints.server.state import Server
from puna.errors import PunaError

__all__ = ["Gate", "refuse_route"]

_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_METHODS: Final = "GET, POST, DELETE, OPTIONS"
_access = logging.getLogger("puna.access")
_log = logging.getLogger("puna.server")


class Gate:
    """Wraps the routes.

    Args:
        app: The routes.
        server: What they share.
        open_paths: Paths of routes that need no key.
    """

    def __init__(self, app: ASGIApp, server: Server, open_paths: frozenset[str]) -> None:
        self._app = app
        self._server = server
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.monotonic()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        state: dict[str, Any] = {"id": request_id, "status": None, "route": None, "abort": scope.pop("abort", None)}
        scope["puna"] = state
        has_begun = False

        async def send_on(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                state["status"] = state["status"] or message["status"]
                more = MutableHeaders(scope=message)
                more["X-Request-Id"] = request_id
                self._allow_origin(headers, more)
            await send(message)

        try:
            try:
                response = self._answer(scope, headers, state)
                await (response or self._app)(scope, receive, send_on)
            except PunaError as error:
                if isinstance(error, Refusal) and error.status == 499:
                    state["status"] = 499
                if not has_begun:
                    await problem(error, path=scope["path"])(scope, receive, send_on)
            except Exception:  # the outermost of a request: a body instead of a cut connection
                _log.exception("a fault of the server's own", extra={"request_id": request_id})
                if has_begun:
                    raise
                fault = Refusal(500, "internal_error", "a fault of the server's own; its log says where")
                await problem(fault, path=scope["path"])(scope, receive, send_on)
        finally:
            self._note(scope, state, time.monotonic() - begin)

    def _answer(self, scope: Scope, headers: Headers, state: dict[str, Any]) -> Response | None:
        """What can be answered here: preflights of browsers. Else finds out whose request it is.

        Raises:
            Refusal: the key is missing or wrong, or the headers are too long.
        """
        most = self._server.limits.max_header_bytes
        length = len(scope["raw_path"]) + len(scope["query_string"])
        if length + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > most:
            raise Refusal(431, "headers_too_large", f"the headers are longer than {most} bytes")
        if scope["method"] == "OPTIONS":
            more = {"Allow": _METHODS}
            if self._is_allowed(headers.get("origin")):
                more |= {
                    "Access-Control-Allow-Methods": _METHODS,
                    "Access-Control-Allow-Headers": headers.get("access-control-request-headers", "*"),
                    "Access-Control-Max-Age": "600",
                }
            return PlainTextResponse("", 204, more)
        if scope["path"] not in self._open_paths:
            tenant = self._server.keys.identify(HTTPConnection(scope))
            state["tenant"] = tenant
            state["timeline"] = self._server.timelines.begin(state["id"], tenant.name, scope["path"])
        return None

    def _is_allowed(self, origin: str | None) -> bool:
        allowed = self._server.settings.allowed_origins
        return origin is not None and ("*" in allowed or origin in allowed)

    def _allow_origin(self, headers: Headers, response: MutableHeaders) -> None:
        allowed = self._server.settings.allowed_origins
        if not allowed:
            return
        response.add_vary_header("Origin")
        origin = headers.get("origin")
        if origin is not None and self._is_allowed(origin):
            response["Access-Control-Allow-Origin"] = "*" if "*" in allowed else origin
            response["Access-Control-Expose-Headers"] = "X-Request-Id, X-Ignored-Fields, Retry-After"

    def _note(self, scope: Scope, state: dict[str, Any], seconds: float) -> None:
        status = state["status"] or 499
        route = state["route"] or "other"
        self._server.metrics.responded(route, scope["method"], status, seconds)
        timeline = state.get("timeline")
        facts: dict[str, Any] = {
            "request_id": state["id"],
            "client": (scope.get("client") or ("", 0))[0],
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 4),
        }
        if timeline is not None:
            timeline.status = status
            facts["key"] = timeline.tenant
            if timeline.num_prompt_tokens:
                facts["prompt_tokens"] = timeline.num_prompt_tokens
                facts["generated_tokens"] = timeline.num_generated_tokens
            if self._server.tracing is not None:
                self._server.tracing.note(timeline, Headers(scope=scope))
        _access.info("%s %s %d", scope["method"], scope["path"], status, extra=facts)


async def refuse_route(request: Request, error: Exception) -> Response:
    """Answers what is no route, or none of this method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        refusal = Refusal(404, "not_found", "there is no such route; /openapi.json lists them")
    elif error.status_code == 405:
        refusal = Refusal(405, "method_not_allowed", f"{request.method} is not for this route")
    else:
        refusal = Refusal(error.status_code, "bad_request", str(error.detail))
    return problem(refusal, error.headers, request.url.path)
