"""`Admission`: who may go to the engine next. The line is bounded, and shared fairly between keys."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from puna.entrypoints.server.keys import Tenant
from puna.entrypoints.server.problems import Refusal

__all__ = ["Admission"]


@dataclass
class _Share:
    """What belongs to one tenant."""

    running: int = 0
    given: int = 0  # sequences that were let in; who comes back after a pause begins where the others are
    waiting: dict[int, tuple[int, int, asyncio.Future[None]]] = field(default_factory=dict)  # priority, number, who


class Admission:
    """Lets some requests to the engine at once; the others wait in line.

    Whoever was given the fewest places is next, so a tenant that floods the line takes no place from another. Within a
    tenant the priority counts, then arrival. Each tenant has an equal part of the line.

    Args:
        names: The tenants.
        max_running: Sequences in the engine; a request with more of them goes there alone.
        max_waiting: Requests that may wait.
        timeout_s: How long they may, in seconds.
    """

    def __init__(self, names: Iterable[str], max_running: int, max_waiting: int, timeout_s: float) -> None:
        self._shares = {name: _Share() for name in names}
        self._max_running = max_running
        self._max_waiting = max(1, max_waiting // max(1, len(self._shares)))
        self._timeout_s = timeout_s
        self._numbers = itertools.count()
        self._seconds_each = 1.0  # how long a request was in the engine, lately

    @property
    def num_waiting(self) -> int:
        """Requests in line."""
        return sum(len(share.waiting) for share in self._shares.values())

    @property
    def num_running(self) -> int:
        """Sequences that were let to the engine."""
        return sum(share.running for share in self._shares.values())

    def check(self, tenant: Tenant) -> None:
        """Refuses at once where there is no place in line.

        Raises:
            Refusal: the tenant's part of the line is full; 429.
        """
        share = self._shares[tenant.name]
        if len(share.waiting) >= self._max_waiting:
            wait = self._seconds_each * (1 + len(share.waiting)) / max(1, self._max_running)
            raise Refusal(
                429,
                "queue_full",
                f"{self._max_waiting} requests are waiting, which is the most; try again later",
                retry_after_s=min(60.0, max(1.0, wait)),
            )

    @asynccontextmanager
    async def place(self, tenant: Tenant, priority: int, num_sequences: int) -> AsyncIterator[None]:
        """A place in the engine, as soon as there is one.

        Args:
            tenant: Whose request it is.
            priority: Lower numbers go first.
            num_sequences: How many sequences it has.

        Raises:
            Refusal: the line is full (429), or the request waited too long (503).
        """
        share = self._shares[tenant.name]
        if not share.running and not share.waiting:
            active = [other.given for other in self._shares.values() if other.running or other.waiting]
            share.given = max(share.given, min(active, default=0))
        if self._has_room(num_sequences) and not self.num_waiting:
            share.running += num_sequences
            share.given += num_sequences
        else:
            self.check(tenant)
            await self._wait(share, priority, num_sequences)
        loop = asyncio.get_running_loop()
        begin = loop.time()
        try:
            yield
        finally:
            share.running -= num_sequences
            self._seconds_each += 0.1 * (loop.time() - begin - self._seconds_each)
            self._let_in()

    def _has_room(self, num_sequences: int) -> bool:
        running = self.num_running
        return running == 0 or running + num_sequences <= self._max_running

    async def _wait(self, share: _Share, priority: int, num_sequences: int) -> None:
        number = next(self._numbers)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        share.waiting[number] = (priority, num_sequences, turn)
        try:
            async with asyncio.timeout(self._timeout_s):
                await turn
        except TimeoutError as error:
            if not turn.done() or turn.cancelled():
                raise Refusal(
                    503,
                    "queue_timeout",
                    f"no place became free within {self._timeout_s:g} s",
                    retry_after_s=self._timeout_s / 10,
                ) from error
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was let in at the same moment
                share.running -= num_sequences
                self._let_in()
            raise
        finally:
            share.waiting.pop(number, None)
            self._let_in()

    def _let_in(self) -> None:
        while True:
            waiting = [share for share in self._shares.values() if share.waiting]
            if not waiting:
                return
            share = min(waiting, key=lambda share: (share.given, min(share.waiting)))
            number = min(share.waiting, key=lambda number: (share.waiting[number][0], number))
            _, num_sequences, turn = share.waiting[number]
            if turn.done():  # cancelled, and about to leave the line
                del share.waiting[number]
                continue
            if not self._has_room(num_sequences):
                return
            del share.waiting[number]
            share.running += num_sequences
            share.given += num_sequences
            turn.set_result(None)
