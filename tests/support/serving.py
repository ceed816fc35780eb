"""A server in this process, over a real socket on the loopback address."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from puna import AsyncLLM
from puna.entrypoints.server.app import create_app
from puna.entrypoints.server.host import ModelHost
from puna.entrypoints.server.process import Network, make_uvicorn
from puna.entrypoints.server.settings import Limits, ServerSettings
from puna.entrypoints.server.state import Server

NAME = "tiny"


@dataclass
class Served:
    """A server that runs.

    Attributes:
        url: Where, without a slash at the end.
        port: Its port.
        server: What its routes share.
        client: A client for it; statuses are not turned into errors.
    """

    url: str
    port: int
    server: Server
    client: httpx2.Client

    @property
    def llm(self) -> AsyncLLM:
        """The model."""
        llm = self.server.host.loaded
        assert llm is not None
        return llm

    def post(self, path: str, **body: Any) -> httpx2.Response:
        """Sends a body."""
        return self.client.post(path, json=body)

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def wait(self, is_so: Callable[[], bool], seconds: float = 10) -> None:
        """Waits until something is so."""
        end = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < end, "it does not come to be so"
            time.sleep(0.005)

    def used_blocks(self) -> int:
        """Pages of the KV cache that requests hold."""
        return self.llm.statistics().counts.blocks.used


@contextmanager
def serving(
    model: str | Path | Callable[[], AsyncLLM],
    *,
    engine: dict[str, Any] | None = None,
    limits: dict[str, Any] | None = None,
    is_awaited: bool = True,
    **settings: Any,
) -> Iterator[Served]:
    """Serves a model meanwhile.

    Args:
        model: Its directory, or what loads it.
        engine: Options of `AsyncLLM`.
        limits: Values of `Limits`.
        is_awaited: Wait until it is loaded.
        settings: Values of `ServerSettings`.
    """
    load = model if callable(model) else lambda: AsyncLLM(model, **{"max_queue_size": 1 << 20, **(engine or {})})
    host = ModelHost(load)
    settings = {"model_names": (NAME,), "limits": Limits(**(limits or {})), **settings}
    app = create_app(ServerSettings(**settings), host)
    runner = make_uvicorn(app, Network(port=0))
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=lambda: asyncio.run(_run(runner, listener)), name="test-server")
    thread.start()
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            served = Served(f"http://127.0.0.1:{port}", port, app.state.server, client)
            served.wait(lambda: runner.started)
            if is_awaited:
                served.wait(lambda: host.state != "loading", 60)
                assert host.state == "ready", host.failure
            yield served
    finally:
        runner.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server does not end"


async def _run(runner: uvicorn.Server, listener: socket.socket) -> None:
    await runner.serve(sockets=[listener])


def events(text: str) -> list[str]:
    """The data of a stream of server-sent events; comments are left out."""
    parts = [part for part in text.split("\n\n") if part and not part.startswith(":")]
    assert all(part.startswith("data: ") for part in parts), parts
    return [part.removeprefix("data: ") for part in parts]
