"""`Job`, `JobBook`, `WaitingLine`: requests as the scheduler sees them, by name, by deadline, and in line."""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Callable

from puna.pipelines.context import TextContext
from puna.pipelines.kv_cache import CacheKey, SequenceID
from puna.pipelines.request import RequestID


class Job:
    """A request, or one of several continuations of it, from `add` to its end.

    Args:
        context: The request.
        arrival: A number that rises from request to request.

    Attributes:
        context: The request.
        sequence: What its pages are held by: the request's name and which of its continuations this is.
        order: Its rank, best first: priority, arrival, choice.
        key: What its pages are found by while it runs, else None.
        replica: Number of the replica that it runs on; meaningless while it waits.
        is_suspect: Whether a step failed in which it took part; it is tried once more, alone.
    """

    __slots__ = ("arrival", "context", "is_suspect", "key", "order", "replica", "sequence")

    def __init__(self, context: TextContext, arrival: int) -> None:
        self.context = context
        self.arrival = arrival
        self.sequence: SequenceID = (context.request_id, context.choice)
        self.order = (context.priority, arrival, context.choice)
        self.key: CacheKey | None = None
        self.replica = 0
        self.is_suspect = False

    @property
    def is_running(self) -> bool:
        """Whether it holds pages."""
        return self.key is not None

    @property
    def will_fork(self) -> bool:
        """Whether its prompt is still to be continued in several ways."""
        return self.context.num_choices > 1 and len(self.context.tokens) == self.context.admission_length

    def __lt__(self, other: Job) -> bool:
        return self.order < other.order


class JobBook:
    """All requests that have not ended."""

    def __init__(self) -> None:
        self._by_sequence: dict[SequenceID, Job] = {}
        self._by_request: dict[RequestID, list[Job]] = {}
        self._deadlines: list[tuple[float, int, RequestID]] = []  # a heap
        self._num_arrivals = 0

    def __len__(self) -> int:
        return len(self._by_sequence)

    def __contains__(self, request_id: RequestID) -> bool:
        return request_id in self._by_request

    def add(self, context: TextContext, origin: Job | None = None) -> Job:
        """Writes a request in; a continuation of another has its rank and its deadline."""
        if origin is None:
            self._num_arrivals += 1
            if context.deadline is not None:
                heapq.heappush(self._deadlines, (context.deadline, self._num_arrivals, context.request_id))
        job = Job(context, self._num_arrivals if origin is None else origin.arrival)
        self._by_sequence[job.sequence] = job
        self._by_request.setdefault(context.request_id, []).append(job)
        return job

    def find(self, sequence: SequenceID, context: TextContext) -> Job | None:
        """The job of a row of a step, or None where it ended meanwhile."""
        job = self._by_sequence.get(sequence)
        return job if job is not None and job.context is context else None

    def continuations(self, request_id: RequestID) -> list[Job]:
        """All that goes on of a request; empty when it has ended."""
        return list(self._by_request.get(request_id, ()))

    def remove(self, job: Job) -> None:
        """Strikes a job out."""
        del self._by_sequence[job.sequence]
        others = self._by_request[job.context.request_id]
        others.remove(job)
        if not others:
            del self._by_request[job.context.request_id]

    def overdue(self, clock: Callable[[], float]) -> list[Job]:
        """Those whose deadline has passed; each is told once."""
        found: list[Job] = []
        while self._deadlines and self._deadlines[0][0] <= clock():
            _deadline, arrival, request_id = heapq.heappop(self._deadlines)
            found += [job for job in self.continuations(request_id) if job.arrival == arrival]
        return found


class WaitingLine:
    """Requests that wait: the lowest priority number first, and first come, first served among equals.

    One that was sent back keeps its place, which is before all that came after it.
    """

    def __init__(self) -> None:
        self._jobs: list[Job] = []

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def first(self) -> Job:
        """Who is next."""
        return self._jobs[0]

    def add(self, job: Job) -> None:
        """Puts a request where it belongs."""
        insort(self._jobs, job)

    def remove(self, job: Job) -> None:
        """Takes a request out."""
        self._jobs.remove(job)
