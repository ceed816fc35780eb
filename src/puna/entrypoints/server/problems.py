"""What goes wrong, as answers: errors of Puna and of HTTP in the body that clients of OpenAI's interface know."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import JSONResponse, Response

from puna.entrypoints.openai.responses import error_body, error_status
from puna.errors import EngineStoppedError, PunaError, QueueFullError, UnsupportedModelError

__all__ = ["Refusal", "anthropic_error", "ollama_error", "problem", "problem_body", "problem_status"]

_RETRY_S: Final = 1
_LONGEST: Final = 1000
_log = logging.getLogger("puna.server")


class Refusal(PunaError):
    """What the server itself refuses, before the engine sees it.

    Args:
        status: The HTTP status.
        code: A stable word for programs.
        message: A sentence for people.
        param: The field or header that is meant.
        retry_after_s: When to try again, in seconds; None: the same request fails again.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        super().__init__(message)


def problem_status(error: PunaError) -> int:
    """The HTTP status of an error."""
    return error.status if isinstance(error, Refusal) else error_status(error)


def problem_body(error: PunaError) -> dict[str, Any]:
    """The body of an error. What only the operator may know is left out, and logged."""
    if isinstance(error, Refusal):
        kind = "server_error" if error.status >= 500 else _KINDS.get(error.status, "invalid_request_error")
        return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}
    body = error_body(error)
    body["error"]["message"] = _shortened(body["error"]["message"])
    if isinstance(error, UnsupportedModelError):
        body["error"]["message"] = f"this model has no usable {error.key.replace('_', ' ')}"  # not where its files are
    elif error_status(error) >= 500 and not isinstance(error, EngineStoppedError):
        _log.error("a request failed: %s", error)
        body["error"] |= {"message": "the model failed on this request; the server's log says why", "code": "failed"}
    return body


def _shortened(message: str) -> str:
    """A message that may quote what was sent, which may be long."""
    return message if len(message) <= _LONGEST else f"{message[:_LONGEST]}…"


_KINDS: Final[Mapping[int, str]] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def anthropic_error(error: PunaError) -> dict[str, Any]:
    """The body of an error as Anthropic's interface has it."""
    status = problem_status(error)
    kind = _ANTHROPIC.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": problem_body(error)["error"]["message"]}}


def ollama_error(error: PunaError) -> dict[str, Any]:
    """The body of an error as Ollama's interface has it."""
    return {"error": problem_body(error)["error"]["message"]}


_ANTHROPIC: Final[Mapping[int, str]] = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def problem(error: PunaError, headers: Mapping[str, str] | None = None, path: str = "") -> Response:
    """The response to an error, in the manner of the interface that a path belongs to."""
    more = dict(headers or {})
    retry = error.retry_after_s if isinstance(error, Refusal) else None
    if isinstance(error, QueueFullError | EngineStoppedError):
        retry = _RETRY_S
    if retry is not None:
        more["Retry-After"] = str(max(1, math.ceil(retry)))
    status = problem_status(error)
    if status == 401:
        more["WWW-Authenticate"] = "Bearer"
    body = anthropic_error if path.startswith("/v1/messages") else ollama_error if path.startswith("/api/") else None
    return JSONResponse((body or problem_body)(error), status, more)
