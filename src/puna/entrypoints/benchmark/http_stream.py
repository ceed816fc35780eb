"""An HTTP/1.1 client that does one thing: it posts JSON and reads the events of the answer, with the time of each."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import h11

from puna.errors import InvalidRequestError

__all__ = ["Endpoint", "HttpFailureError", "fetch_json", "stream_events"]

_READ: Final = 1 << 16
_MOST_BYTES: Final = 64 << 20  # of an answer that is not streamed


class HttpFailureError(Exception):
    """A request that was not served: a status other than 200, or a connection that broke."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go.

    Attributes:
        host: Name or address.
        port: Port.
        prefix: What routes begin with, such as `/v1`.
        is_tls: Whether the connection is encrypted.
        api_key: Sent as a bearer's token; None: no key is sent.
    """

    host: str
    port: int
    prefix: str
    is_tls: bool
    api_key: str | None = None

    @classmethod
    def parse(cls, url: str, api_key: str | None = None) -> Endpoint:
        """Of a base URL.

        Raises:
            InvalidRequestError: It is no http or https URL.
        """
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as error:
            raise InvalidRequestError(f"{url!r}: {error}", param="--base-url") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise InvalidRequestError(f"{url!r} is no URL such as http://127.0.0.1:8000/v1", param="--base-url")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise InvalidRequestError("a key has printable ASCII characters only", param="--api-key")
        is_tls = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if is_tls else 80), parts.path.rstrip("/"), is_tls, api_key)

    def headers(self, body: bytes | None) -> list[tuple[str, str]]:
        """Of a request with this body."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        found = [("Host", f"{name}:{self.port}"), ("Connection", "close"), ("Accept", "*/*")]
        if self.api_key is not None:
            found.append(("Authorization", f"Bearer {self.api_key}"))
        if body is not None:
            found += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        return found


async def fetch_json(endpoint: Endpoint, path: str) -> Any:
    """What GET gives.

    Raises:
        HttpFailureError: The status is not 200, the connection broke, or the body is no JSON.
    """
    parts = [part async for _time, part in _exchange(endpoint, "GET", path, None)]
    try:
        return json.loads(b"".join(parts))
    except ValueError as error:
        raise HttpFailureError(f"{path}: the answer is no JSON") from error


async def stream_events(endpoint: Endpoint, path: str, body: Mapping[str, Any]) -> AsyncIterator[tuple[float, str]]:
    """Posts a body; the data of each server-sent event, and when it was read (`time.perf_counter`, seconds).

    Raises:
        HttpFailureError: The status is not 200, or the connection broke.
    """
    rest = b""
    async for when, part in _exchange(endpoint, "POST", path, json.dumps(body).encode()):
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield when, line[5:].strip().decode("utf-8", errors="replace")


async def _exchange(
    endpoint: Endpoint, method: str, path: str, body: bytes | None
) -> AsyncIterator[tuple[float, bytes]]:
    connection = h11.Connection(h11.CLIENT)
    context = ssl.create_default_context() if endpoint.is_tls else None
    try:
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise HttpFailureError(f"cannot reach {endpoint.host}:{endpoint.port}: {reason}") from error
    try:
        target = endpoint.prefix + path
        request = h11.Request(method=method, target=target, headers=endpoint.headers(body))
        writer.write(connection.send(request) or b"")
        if body is not None:
            writer.write(connection.send(h11.Data(data=body)) or b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        await writer.drain()
        status, refusal = 200, b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(_READ))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                if status == 200:
                    yield time.perf_counter(), bytes(event.data)
                else:
                    refusal = (refusal + bytes(event.data))[:_MOST_BYTES]
            elif isinstance(event, h11.EndOfMessage):
                break
        if status != 200:
            raise HttpFailureError(f"{target}: status {status}{_message(refusal)}")
    except (OSError, h11.RemoteProtocolError) as error:
        raise HttpFailureError(f"{path}: the connection broke: {error}") from error
    finally:
        writer.close()


def _message(body: bytes) -> str:
    """What an error's body says, in OpenAI's form or as text."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = body.decode("utf-8", errors="replace")
    text = " ".join(str(message).split())
    return f": {text[:300]}" if text else ""
