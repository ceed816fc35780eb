"""`EventStream`: a response of server-sent events that ends when its client goes away, or reads no more."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["DONE", "PING", "EventStream", "event", "json_text"]

DONE: Final = b"data: [DONE]\n\n"
PING: Final = b": ping\n\n"  # a comment: keeps proxies and clients from giving up
_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def json_text(value: Any) -> bytes:
    """A value as JSON, on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def event(value: Any, name: str | None = None) -> bytes:
    """A server-sent event; `name`: its type."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return b"".join((head, b"data: ", json_text(value), b"\n\n"))


class EventStream(Response):
    """Sends what a generator yields. The generator is closed when the client goes away.

    Args:
        parts: What is sent, piece by piece.
        write_timeout_s: How long the client may not read, in seconds; then it is cut off.
        headers: Further headers.
        media_type: Of the response.
    """

    def __init__(
        self,
        parts: AsyncGenerator[bytes],
        write_timeout_s: float,
        headers: Mapping[str, str] | None = None,
        media_type: str = "text/event-stream; charset=utf-8",
    ) -> None:
        self._parts = parts
        self._write_timeout_s = write_timeout_s
        self.status_code = 200
        self.background = None
        self.init_headers({**_HEADERS, "Content-Type": media_type, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response."""
        sending = asyncio.create_task(self._send(scope, send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                scope["puna"]["status"] = 499
        finally:
            for task in (sending, gone):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task

    async def _send(self, scope: Scope, send: Send) -> None:
        async with contextlib.aclosing(self._parts) as parts:
            try:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                async for part in parts:
                    async with asyncio.timeout(self._write_timeout_s):
                        await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            except TimeoutError:
                scope["puna"]["status"] = 499
                abort = scope["puna"].get("abort")
                if abort is not None:
                    abort()  # closing would wait for the client to read what is buffered
            except OSError:
                scope["puna"]["status"] = 499


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
