"""`ModelHost`: the model of a server, from the moment it begins to load until it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Literal, TypeAlias

from puna.entrypoints.async_llm import AsyncLLM
from puna.entrypoints.server.problems import Refusal

__all__ = ["HostState", "ModelHost"]

_WATCH_S = 0.2
_log = logging.getLogger("puna.server")

HostState: TypeAlias = Literal["loading", "ready", "draining", "failed"]


class ModelHost:
    """Loads a model in a thread while the server answers already, watches its engine, and lets it end.

    Args:
        load: Loads the model; called once, in a thread.

    Attributes:
        state: Where it is in its life; requests are served while it is `ready`.
        failure: What ended it, when it is `failed`.
        created: When the model was loaded, in seconds since 1970.
        ended: Is set when there is nothing more to wait for: it failed.
    """

    def __init__(self, load: Callable[[], AsyncLLM]) -> None:
        self._load = load
        self._llm: AsyncLLM | None = None
        self._task: asyncio.Task[None] | None = None
        self.state: HostState = "loading"
        self.failure: BaseException | None = None
        self.created = int(time.time())
        self.ended = asyncio.Event()

    @property
    def llm(self) -> AsyncLLM:
        """The model.

        Raises:
            Refusal: it is not ready; 503.
        """
        self.require_ready()
        assert self._llm is not None
        return self._llm

    @property
    def loaded(self) -> AsyncLLM | None:
        """The model whatever its state, or None while it loads."""
        return self._llm

    def require_ready(self) -> None:
        """Nothing, while requests are served.

        Raises:
            Refusal: they are not; 503.
        """
        if self.state == "ready":
            return
        words = {
            "loading": ("model_loading", "the model is being loaded", 2.0),
            "draining": ("draining", "the server is about to end and takes no further requests", 5.0),
            "failed": ("engine_failed", "the engine ended; the server is about to end too", 5.0),
        }
        code, message, retry = words[self.state]
        raise Refusal(503, code, message, retry_after_s=retry)

    def start(self) -> None:
        """Begins to load."""
        self._task = asyncio.create_task(self._run())

    def stop_taking(self) -> None:
        """Takes no further requests; those under way go on."""
        if self.state in ("loading", "ready"):
            self.state = "draining"

    async def close(self) -> None:
        """Ends all requests and gives the memory back."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._llm is not None:
            await self._llm.close()

    async def _run(self) -> None:
        try:
            self._llm = await self._loaded_in_thread()
            if self._llm.has_tokenizer:
                await asyncio.to_thread(self._llm.tokenizer.prepare)
        except Exception as error:  # whatever stops a load ends the process, with its reason
            self._fail(error)
            return
        if self.state == "loading":
            self.state, self.created = "ready", int(time.time())
            _log.info("the model is ready", extra={"load_seconds": round(self._llm.load_seconds, 3)})
        while self._llm.statistics().state != "died":
            await asyncio.sleep(_WATCH_S)
        self._fail(RuntimeError("the engine's thread died"))

    async def _loaded_in_thread(self) -> AsyncLLM:
        """Loads in a thread that does not keep the process alive when it is told to end meanwhile."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[AsyncLLM] = loop.create_future()

        def settle(llm: AsyncLLM | None, error: Exception | None) -> None:
            if result.done():
                return
            if llm is not None:
                result.set_result(llm)
            elif error is not None:
                result.set_exception(error)

        def run() -> None:
            llm, error = None, None
            try:
                llm = self._load()
            except Exception as problem:  # handed to the waiting loop
                error = problem
            with contextlib.suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(settle, llm, error)

        threading.Thread(target=run, name="puna-load", daemon=True).start()
        return await result

    def _fail(self, error: Exception) -> None:
        self.state, self.failure = "failed", error
        self.ended.set()
