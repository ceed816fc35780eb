"""`TokenStream`: what one request gets, on its way from the engine's thread to whoever asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import TypeAlias

from puna.pipelines.batch import GenerationDelta
from puna.pipelines.request import RequestID

__all__ = ["TokenStream", "wake_all"]

Waiter: TypeAlias = "asyncio.Future[None] | threading.Event"
"""Who waits for a stream: a task of an event loop, or a thread."""


class TokenStream:
    """The deltas of one request, oldest first: `async for` on any event loop, or `for` on any thread.

    A consumer that is slow gets what came meanwhile in one piece per continuation: the engine never waits for it, and
    what is kept is at most the request's own tokens. One consumer at a time. A stream that is closed or dropped before
    its end ends the request.

    Args:
        request_id: The request.
        num_choices: How many continuations it has; the stream is over when all of them are.
        close: Called with the stream when nobody fetches from it any more; ends the request.

    Attributes:
        request_id: The request.
    """

    def __init__(self, request_id: RequestID, num_choices: int, close: Callable[[TokenStream], None]) -> None:
        self.request_id = request_id
        self._close = close
        self._lock = threading.Lock()
        self._pending: dict[int, GenerationDelta] = {}  # by choice; oldest first
        self._open = set(range(num_choices))
        self._waiter: Waiter | None = None

    @property
    def open_choices(self) -> list[int]:
        """Continuations that have not ended, whether or not what they got was fetched."""
        with self._lock:
            return sorted(self._open)

    def push(self, delta: GenerationDelta) -> Waiter | None:
        """Takes what a step brought; the engine's thread calls it.

        Returns:
            Who waits for it, to be woken with `wake_all`.
        """
        with self._lock:
            if delta.choice not in self._open:  # it was closed meanwhile
                return None
            earlier = self._pending.get(delta.choice)
            self._pending[delta.choice] = delta if earlier is None else _merged(earlier, delta)
            if delta.finish_reason is not None:
                self._open.discard(delta.choice)
            waiter, self._waiter = self._waiter, None
        return waiter

    def close(self) -> None:
        """Ends the request unless it has ended; what nobody fetched is dropped."""
        with self._lock:
            self._pending.clear()
            self._open.clear()
            waiter, self._waiter = self._waiter, None
        if waiter is not None:
            wake_all([(self, waiter)])
        self._close(self)

    def __aiter__(self) -> AsyncIterator[GenerationDelta]:
        return self

    async def __anext__(self) -> GenerationDelta:
        loop = asyncio.get_running_loop()
        while True:
            arrived: asyncio.Future[None] = loop.create_future()
            is_over, delta = self._fetch(arrived)
            if delta is not None:
                return delta
            if is_over:
                self._close(self)
                raise StopAsyncIteration
            await arrived

    def __iter__(self) -> Iterator[GenerationDelta]:
        return self

    def __next__(self) -> GenerationDelta:
        while True:
            arrived = threading.Event()
            is_over, delta = self._fetch(arrived)
            if delta is not None:
                return delta
            if is_over:
                self._close(self)
                raise StopIteration
            arrived.wait()

    def _fetch(self, waiter: Waiter) -> tuple[bool, GenerationDelta | None]:
        """Whether the stream is over, and what is there; if both say no, the waiter is woken when something comes."""
        with self._lock:
            if self._pending:
                return False, self._pending.pop(next(iter(self._pending)))
            if self._open:
                self._waiter = waiter
            return not self._open, None


def wake_all(waiters: Iterable[tuple[TokenStream, Waiter]]) -> list[TokenStream]:
    """Wakes all of them, with one call per event loop.

    Returns:
        Streams whose event loop was closed: nobody will fetch them.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[TokenStream, asyncio.Future[None]]]] = {}
    for stream, waiter in waiters:
        if isinstance(waiter, threading.Event):
            waiter.set()
        else:
            by_loop.setdefault(waiter.get_loop(), []).append((stream, waiter))
    lost: list[TokenStream] = []
    for loop, pairs in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle, [future for _stream, future in pairs])
        except RuntimeError:
            lost += [stream for stream, _future in pairs]
    return lost


def _settle(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():  # its task may have been cancelled
            future.set_result(None)


def _merged(earlier: GenerationDelta, later: GenerationDelta) -> GenerationDelta:
    return later._replace(
        tokens=earlier.tokens + later.tokens,
        log_probabilities=earlier.log_probabilities + later.log_probabilities,
    )
