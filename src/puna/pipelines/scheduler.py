"""The scheduler: owns requests from the moment they come until they end.

Requests are served by priority, and first come, first served within one. `Packer` decides on a step, `Roster` keeps the
books; what a step computed is taken in here. Where there are several replicas, each has pages of its own and a request
stays where it began.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from puna.driver import Buffer
from puna.errors import InvalidRequestError, PromptTooLongError, PunaError, QueueFullError, StepFailedError
from puna.nn.kv_cache import KVCacheInputs
from puna.pipelines.batch import (
    FinishReason,
    GenerationDelta,
    ScheduledBatch,
    ScheduledRow,
    SchedulerCounts,
    StepResult,
)
from puna.pipelines.context import GenerationStatus, TextContext
from puna.pipelines.jobs import Job
from puna.pipelines.kv_cache import PagedKVCacheManager
from puna.pipelines.packing import Packer
from puna.pipelines.replica import Replica, RopeLengths, SchedulerLimits
from puna.pipelines.request import RequestID
from puna.pipelines.roster import Roster

__all__ = ["RopeLengths", "Scheduler", "SchedulerLimits"]


class Scheduler:
    """Owns requests from `add` until they end.

    Args:
        kv_managers: The KV cache of each replica.
        limits: What a step may hold.
        rope: Decides when a request's cached keys are of no use any more; None: never.
        clock: Seconds, as deadlines are stated in.
    """

    def __init__(
        self,
        kv_managers: Sequence[PagedKVCacheManager],
        limits: SchedulerLimits | None = None,
        rope: RopeLengths | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits or SchedulerLimits()
        self._replicas = [Replica(number, kv, self._limits, rope) for number, kv in enumerate(kv_managers)]
        self._roster = Roster(self._replicas, clock)
        self._packer = Packer(self._roster, self._limits)

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return len(self._roster.jobs) > 0

    @property
    def num_preemptions(self) -> int:
        """How often a request gave its pages back to let another one go on."""
        return self._roster.num_preemptions

    def counts(self) -> SchedulerCounts:
        """What it did so far, and what is under way."""
        return self._roster.counts()

    def check(self, context: TextContext) -> None:
        """Refuses what can never be served; any thread may ask.

        Raises:
            InvalidRequestError: The request asks for what is not there, or can never fit the cache.
        """
        if context.target_endpoint is not None:
            raise InvalidRequestError("requests are not handed to other workers", param="target_endpoint")
        if context.sampling_params.thinking_temperature is not None and context.thinking is None:
            raise InvalidRequestError("no tokens are known that mark reasoning", param="thinking_temperature")
        most = self._replicas[0].kv.max_tokens
        if len(context.tokens) > most:
            raise PromptTooLongError(len(context.tokens), most, f"the KV cache holds ({most})")

    def add(self, context: TextContext) -> None:
        """Takes a request in.

        Raises:
            InvalidRequestError: `check` refuses it, or its name is taken.
            QueueFullError: Too many wait.
        """
        self.check(context)
        limit = self._limits.max_waiting
        if limit is not None and len(self._roster.waiting) >= limit:
            raise QueueFullError(limit)
        if context.request_id in self._roster.jobs:
            raise InvalidRequestError(f"{context.request_id} is taken", param="request_id")
        self._roster.waiting.add(self._roster.jobs.add(context))

    def fork(self, parent_id: RequestID, child: TextContext) -> None:
        """Takes in a request that begins as a running one does, and shares its pages.

        Full pages are shared for good, the open one until somebody writes to it. All tokens but the child's last may be
        shared. A parent that gave its pages back in between costs no more than that the child is read anew.

        Args:
            parent_id: A request that has not ended.
            child: A request with a name of its own.

        Raises:
            InvalidRequestError: As `add`; or there is no such parent.
        """
        parents = self._roster.jobs.continuations(parent_id)
        if not parents:
            raise InvalidRequestError(f"there is no request {parent_id} to fork", param="request_id")
        self.check(child)
        if child.request_id in self._roster.jobs:
            raise InvalidRequestError(f"{child.request_id} is taken", param="request_id")
        parent = parents[0]
        ours, theirs = parent.context.tokens, child.tokens
        most = min(ours.processed_length, len(theirs) - 1)
        if child.reader is not None:
            most = min(most, child.reader.first_position)
        differing = (ours.all[:most] != theirs.all[:most]).nonzero()[0]
        num_common = int(differing[0]) if len(differing) else most
        job = self._roster.jobs.add(child)
        replica = self._replicas[parent.replica]
        if not parent.is_running or num_common == 0 or replica.key_of(child) != parent.key:
            self._roster.waiting.add(job)
            return
        replica.fork(parent, job, num_common)
        theirs.skip_processing(num_common)

    def abort(self, request_id: RequestID, choice: int | None = None) -> bool:
        """Ends a request whose client went away or whose text met a stop string; False when it has ended already.

        Args:
            request_id: The request.
            choice: Which of its continuations; None: all of them. One that has not begun yet cannot be ended alone.
        """
        jobs = self._roster.jobs.continuations(request_id)
        if choice is not None:
            jobs = [job for job in jobs if job.context.choice == choice and not job.will_fork]
        for job in jobs:
            job.context.status = GenerationStatus.ABORTED
            self._roster.end(job)
        return bool(jobs)

    def cache_inputs(self, batch: ScheduledBatch) -> KVCacheInputs[Buffer, Buffer]:
        """What a step is told about the KV cache, replica by replica."""
        return KVCacheInputs(
            [
                device
                for replica, rows in zip(self._replicas, batch.replicas, strict=True)
                for device in replica.kv.inputs([row.cache for row in rows], batch.num_steps)
            ]
        )

    def schedule(self) -> ScheduledBatch:
        """Decides on the next step."""
        return self._packer.pack()

    def update(self, batch: ScheduledBatch, results: Sequence[StepResult]) -> list[GenerationDelta]:
        """Takes in what the step computed.

        Tokens behind a request's last one, which a turn of several forward passes may have made, are dropped.

        Args:
            batch: The step's decision.
            results: One entry per forward pass.
        """
        deltas = list(batch.ended)
        drawn = [result.sampled.tokens.tolist() for result in results]
        position = 0
        for row in batch.rows:
            job = self._roster.jobs.find(row.cache.sequence, row.context)
            if job is None:  # aborted while the step ran
                position += len(row.samples)
                continue
            if job.is_suspect:
                self._roster.clear(job)
            if row.samples:
                self._take_tokens(job, row, position, drawn, results, deltas)
                position += len(row.samples)
            elif not row.context.tokens.is_chunked:
                deltas.append(self._end_reading(job))
            else:
                row.context.tokens.advance_chunk()
                self._replicas[job.replica].commit(job)
        return deltas

    def retry_alone(self, batch: ScheduledBatch, error: Exception) -> list[GenerationDelta]:
        """Takes in that the step failed: its requests are tried once more, one by one; who was, ends.

        Args:
            batch: The step's decision. Nothing of it counts as computed.
            error: What went wrong.
        """
        deltas = list(batch.ended)
        for row in batch.rows:
            job = self._roster.jobs.find(row.cache.sequence, row.context)
            if job is None:
                continue
            if job.is_suspect:
                failure = error if isinstance(error, PunaError) else StepFailedError(error)
                deltas += self._roster.end(job, FinishReason.ERROR, failure)
            else:
                self._roster.suspect(job)
        return deltas

    def _take_tokens(
        self,
        job: Job,
        row: ScheduledRow,
        position: int,
        drawn: Sequence[list[int]],
        results: Sequence[StepResult],
        deltas: list[GenerationDelta],
    ) -> None:
        """Gives a request, and the forks that begin here, what was drawn for them from `position` on."""
        replica = self._replicas[job.replica]
        error = _append(row.context, position, drawn, results)
        if error is None:
            replica.commit(job)
        takers = [(job, error)]
        for number, context in enumerate(row.samples[1:], 1):
            fork = self._roster.jobs.add(context, job)
            replica.fork(job, fork, len(context.tokens))
            takers.append((fork, _append(context, position + number, drawn, results)))
        deltas += [self._tell(taker, failure) for taker, failure in takers]

    def _tell(self, job: Job, error: PunaError | None) -> GenerationDelta:
        """What a request got in this step; one that is done ends."""
        context = job.context
        tokens, log_probabilities = context.take_output()
        self._roster.num_generated_tokens += len(tokens)
        if error is not None or context.status is not GenerationStatus.ACTIVE:
            self._roster.end(job)
        return GenerationDelta(
            context.request_id,
            tuple(tokens),
            FinishReason.ERROR if error is not None else _FINISH_REASONS[context.status],
            context.stop_reason,
            error,
            tuple(log_probabilities),
            context.cached_prefix_length,
            context.choice,
        )

    def _end_reading(self, job: Job) -> GenerationDelta:
        """Ends a request that wanted its prompt read and no token; its pages stay behind for others to find."""
        tokens = job.context.tokens
        self._replicas[job.replica].kv.commit(job.sequence, tokens.all, len(tokens))
        job.context.status = GenerationStatus.MAXIMUM_LENGTH
        (delta,) = self._roster.end(job, FinishReason.LENGTH)
        return delta


def _append(
    context: TextContext, position: int, drawn: Sequence[list[int]], results: Sequence[StepResult]
) -> PunaError | None:
    """Gives a context its tokens of all passes, as far as it goes on."""
    for tokens, result in zip(drawn, results, strict=True):
        sampled = result.sampled
        error = sampled.errors[position]
        if error is not None or context.status is not GenerationStatus.ACTIVE:
            return error
        context.update(tokens[position], sampled.log_probabilities[position] if sampled.log_probabilities else None)
    if context.status is GenerationStatus.ACTIVE:
        context.jump_ahead()
    return None


_FINISH_REASONS = {
    GenerationStatus.ACTIVE: None,
    GenerationStatus.END_OF_SEQUENCE: FinishReason.STOP,
    GenerationStatus.MAXIMUM_LENGTH: FinishReason.LENGTH,
    GenerationStatus.ABORTED: FinishReason.ABORT,
}
