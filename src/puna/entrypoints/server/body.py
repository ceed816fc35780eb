"""Bodies of requests: read within limits of size, time and depth, and checked for what JSON cannot mean."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request

from puna.entrypoints.server.problems import Refusal
from puna.entrypoints.server.settings import Limits
from puna.errors import InvalidRequestError

__all__ = ["parse_json", "read_bytes", "read_object"]

_IN_THREAD: Final = 64 << 10  # bytes from which parsing would hold up the event loop


async def read_object(request: Request, limits: Limits) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        Refusal: it is too long, too slow, or of another media type.
        InvalidRequestError: it is no JSON object, nested too deeply, or holds half of a surrogate pair.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise Refusal(415, "unsupported_media_type", f"a body of type application/json is expected, got {kind!r}")
    data = await read_bytes(request, limits)
    if len(data) < _IN_THREAD:
        return parse_json(data, limits.max_json_depth)
    return await asyncio.to_thread(parse_json, data, limits.max_json_depth)


async def read_bytes(request: Request, limits: Limits) -> bytes:
    """The body of a request.

    Raises:
        Refusal: it is too long or too slow, or the client went away.
    """
    most = limits.max_body_bytes
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > most:
        raise _too_long(most)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise _too_long(most)
                parts.append(part)
    except TimeoutError as error:
        raise Refusal(408, "body_timeout", f"the body did not arrive within {limits.body_timeout_s:g} s") from error
    except ClientDisconnect as error:
        raise Refusal(499, "client_closed", "the client went away before its request was there") from error
    return b"".join(parts)


def _too_long(most: int) -> Refusal:
    return Refusal(413, "request_too_large", f"the body is longer than {most} bytes, which is the most that is read")


def parse_json(data: bytes, max_depth: int) -> dict[str, Any]:
    """A JSON object of bytes.

    Raises:
        InvalidRequestError: it is none, is nested too deeply, or holds half of a surrogate pair.
    """
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the body is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise InvalidRequestError(f"the body is nested more than {max_depth} deep") from error
    except ValueError as error:
        raise InvalidRequestError(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequestError("the body must be a JSON object")
    _check(value, max_depth)
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _check(value: Any, max_depth: int) -> None:
    """Looks through all texts and counts depth, without recursion."""
    level: list[Any] = [value]
    for _ in range(max_depth):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                _check_texts(item)
                below += [part for part in item.values() if isinstance(part, dict | list)]
                _check_texts(item.values())
            else:
                _check_texts(item)
                below += [part for part in item if isinstance(part, dict | list)]
        if not below:
            return
        level = below
    raise InvalidRequestError(f"the body is nested more than {max_depth} deep")


def _check_texts(items: Any) -> None:
    for item in items:
        if isinstance(item, str) and not item.isascii():
            try:
                item.encode("utf-8")
            except UnicodeEncodeError as error:
                raise InvalidRequestError("a text of the body holds half of a surrogate pair") from error
