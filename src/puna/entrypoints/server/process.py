"""The server's process: sockets, signals, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import math
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from puna.entrypoints.server.host import ModelHost
from puna.entrypoints.server.state import Server
from puna.errors import InvalidRequestError, PunaError

__all__ = ["Network", "PunaProtocol", "serve"]

_ENGINE_DIED: Final = 70
_NOT_DRAINED: Final = 1
_POLL_S: Final = 0.02
_COMPLAINT_S: Final = 10.0  # between lines that say the same
_log = logging.getLogger("puna.server")


@dataclass(frozen=True, kw_only=True)
class Network:
    """Where a server listens.

    Attributes:
        host: Address.
        port: Port; 0: one that is free.
        certificate: File of the TLS certificate, or None.
        key: File of its key.
        key_password: Of that file.
        client_authorities: File of authorities whose certificates clients need, or None.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    key: Path | None = None
    key_password: str | None = None
    client_authorities: Path | None = None


class PunaProtocol(H11Protocol):
    """HTTP/1.1 whose headers and idle connections have a time limit, and whose refusals have a body."""

    header_timeout_s: float = 30.0
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's stub is wider
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not None and self.cycle is not before:
            self._stop_timer()
            self.cycle.scope["abort"] = self.transport.abort  # type: ignore[typeddict-unknown-key]  # ours

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self._await_headers()

    def send_400_response(self, msg: str) -> None:
        status, code = 400, "bad_request"
        if len(self.conn.trailing_data[0]) >= (self.config.h11_max_incomplete_event_size or 0):
            status, code = 431, "headers_too_large"
            msg = "The request's headers are longer than this server reads."
        body = json.dumps({
            "error": {"message": msg, "type": "invalid_request_error", "param": None, "code": code}
        }).encode()  # fmt: skip
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        events = [h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()]
        with contextlib.suppress(h11.LocalProtocolError):
            for item in events:
                data = self.conn.send(item)
                if data:
                    self.transport.write(data)
        self.transport.close()

    def _await_headers(self) -> None:
        self._stop_timer()
        self._header_timer = self.loop.call_later(self.header_timeout_s, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are handled here, not by uvicorn: it would close the sockets first and refuse /health."""
        yield


def serve(app: Starlette, network: Network, *, is_quiet: bool = False) -> int:
    """Serves until a signal or a failure ends it.

    Returns:
        The exit status: 0 when a signal ended it and all answers were given.
    """
    return asyncio.run(_serve(app, network, is_quiet))


def _bind(network: Network) -> socket.socket:
    family = socket.AF_INET6 if ":" in network.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((network.host, network.port))
    except OSError as error:
        listener.close()
        raise InvalidRequestError(
            f"{network.host}:{network.port} cannot be listened on: {error.strerror or error}", param="port"
        ) from error
    listener.listen(2048)
    listener.setblocking(False)
    return listener


def make_uvicorn(app: Starlette, network: Network) -> uvicorn.Server:
    """Uvicorn around an application, with its limits."""
    server: Server = app.state.server
    limits = server.limits

    class Protocol(PunaProtocol):
        header_timeout_s = limits.header_timeout_s

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        root_path=server.settings.root_path,
        limit_concurrency=limits.max_connections,
        timeout_keep_alive=max(1, int(limits.header_timeout_s)),
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=limits.max_header_bytes,
        ssl_certfile=network.certificate,
        ssl_keyfile=network.key,
        ssl_keyfile_password=network.key_password,
        ssl_ca_certs=str(network.client_authorities) if network.client_authorities is not None else None,
        ssl_cert_reqs=2 if network.client_authorities is not None else 0,
    )
    return _Uvicorn(config)


class _Complaints:
    """What the event loop complains about. Connections that find no descriptor are a line every ten seconds."""

    def __init__(self) -> None:
        self._last = -math.inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
        elif loop.time() - self._last > _COMPLAINT_S:
            self._last = loop.time()
            _log.error("connections wait: %s; raise the limit (ulimit -n) or lower --max-connections", error.strerror)


async def _serve(app: Starlette, network: Network, is_quiet: bool) -> int:
    server: Server = app.state.server
    host: ModelHost = server.host
    listener = _bind(network)
    runner = make_uvicorn(app, network)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_Complaints())
    num_signals = 0
    status = 0

    def on_signal(name: str) -> None:
        nonlocal num_signals, status
        num_signals += 1
        if num_signals == 1:
            _log.info("%s: no further requests; those under way have %g s", name, server.limits.drain_timeout_s)
            draining.set()
        else:
            _log.warning("%s again: ending now", name)
            status = _NOT_DRAINED
            runner.force_exit = runner.should_exit = True

    draining = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)

    async def end() -> None:
        """Waits for what ends the server, and sees to it that it ends."""
        nonlocal status
        waits = [asyncio.create_task(draining.wait()), asyncio.create_task(host.ended.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        if host.failure is not None:
            status = host.failure.exit_code if isinstance(host.failure, PunaError) else _ENGINE_DIED
            _log.critical("%s", host.failure)
        elif not await _drained(server, runner):
            status = _NOT_DRAINED
            _log.warning("not all answers were finished in time")
            await host.close()  # the streams that are left end with an error
        runner.should_exit = True

    ending = asyncio.create_task(end())
    if not is_quiet:
        scheme = "https" if network.certificate is not None else "http"
        address, port = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        _log.info("listening on %s://%s:%d", scheme, shown, port)
    try:
        await runner.serve(sockets=[listener])
    finally:
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        listener.close()
    return status


async def _drained(server: Server, runner: uvicorn.Server) -> bool:
    """Lets answers under way end; False: some did not in time."""
    server.host.stop_taking()
    loop = asyncio.get_running_loop()
    end = loop.time() + server.limits.drain_timeout_s
    while runner.server_state.tasks and not runner.should_exit:
        if loop.time() > end:
            return False
        await asyncio.sleep(_POLL_S)
    return True

