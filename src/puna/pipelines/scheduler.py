"""The scheduler: which requests take part in the next step, and with how many tokens.

There is no phase of prompts and no phase of generation. A request has tokens, and a count of those that are computed;
a step lets the second catch up with the first, within a budget of tokens. A long prompt read in chunks, a cached
prefix and the one token of a running generation are all this subtraction.

Requests are served by priority, and first come, first served within one. When a running one needs a page and none is
free, the least urgent and youngest gives its pages back and waits: its tokens become a new prompt, which later steps
read again. Where there are several replicas, each has pages of its own and a request stays where it began.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from puna.driver import Buffer
from puna.errors import (
    InsufficientBlocksError,
    InvalidRequestError,
    PromptTooLongError,
    PunaError,
    QueueFullError,
    StepFailedError,
)
from puna.nn.kv_cache import KVCacheInputs
from puna.pipelines.batch import (
    FinishReason,
    GenerationDelta,
    ScheduledBatch,
    ScheduledRow,
    SchedulerCounts,
    StepResult,
)
from puna.pipelines.context import DEADLINE, GenerationStatus, TextContext
from puna.pipelines.jobs import Job, JobBook, WaitingLine
from puna.pipelines.kv_cache import BlockCounts, PagedKVCacheManager, PrefixMatch
from puna.pipelines.replica import Replica, RopeLengths, SchedulerLimits
from puna.pipelines.request import RequestID

__all__ = ["RopeLengths", "Scheduler", "SchedulerLimits"]

_SLACK: Final = 2  # requests that a replica may run more than another for the sake of a cached prefix


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
        self._clock = clock
        self._waiting = WaitingLine()
        self._jobs = JobBook()
        self._suspects: list[Job] = []  # running ones
        self._num_prompt_tokens = self._num_cached_tokens = self._num_generated_tokens = 0
        self._num_preemptions = self._num_retries = 0

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return len(self._jobs) > 0

    @property
    def num_preemptions(self) -> int:
        """How often a request gave its pages back to let another one go on."""
        return self._num_preemptions

    def counts(self) -> SchedulerCounts:
        """What it did so far, and what is under way."""
        pools = [replica.kv.counts() for replica in self._replicas]
        return SchedulerCounts(
            num_waiting=len(self._waiting),
            num_running=len(self._jobs) - len(self._waiting),
            blocks=BlockCounts(
                *(sum(values) for values in zip(*((p.total, p.free, p.cached) for p in pools), strict=True))
            ),
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._num_cached_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_preemptions=self._num_preemptions,
            num_retries=self._num_retries,
            store=self._replicas[0].kv.store_counts(),
        )

    def check(self, context: TextContext) -> None:
        """Refuses what can never be served; any thread may ask.

        Raises:
            InvalidRequestError: The request asks for what is not there, or can never fit the cache.
        """
        if context.json_schema is not None or context.grammar is not None or context.matcher is not None:
            raise InvalidRequestError("structured output is not available", param="response_format")
        if context.target_endpoint is not None:
            raise InvalidRequestError("requests are not handed to other workers", param="target_endpoint")
        if context.sampling_params.thinking_temperature is not None:
            raise InvalidRequestError("reasoning sections are not told apart", param="thinking_temperature")
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
        if limit is not None and len(self._waiting) >= limit:
            raise QueueFullError(limit)
        if context.request_id in self._jobs:
            raise InvalidRequestError(f"{context.request_id} is taken", param="request_id")
        self._waiting.add(self._jobs.add(context))

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
        parents = self._jobs.continuations(parent_id)
        if not parents:
            raise InvalidRequestError(f"there is no request {parent_id} to fork", param="request_id")
        self.check(child)
        if child.request_id in self._jobs:
            raise InvalidRequestError(f"{child.request_id} is taken", param="request_id")
        parent = parents[0]
        ours, theirs = parent.context.tokens, child.tokens
        most = min(ours.processed_length, len(theirs) - 1)
        if child.reader is not None:
            most = min(most, child.reader.first_position)
        differing = (ours.all[:most] != theirs.all[:most]).nonzero()[0]
        num_common = int(differing[0]) if len(differing) else most
        job = self._jobs.add(child)
        replica = self._replicas[parent.replica]
        if not parent.is_running or num_common == 0 or replica.key_of(child) != parent.key:
            self._waiting.add(job)
            return
        replica.fork(parent, job, num_common)
        theirs.skip_processing(num_common)

    def abort(self, request_id: RequestID, choice: int | None = None) -> bool:
        """Ends a request whose client went away or whose text met a stop string; False when it has ended already.

        Args:
            request_id: The request.
            choice: Which of its continuations; None: all of them. One that has not begun yet cannot be ended alone.
        """
        jobs = self._jobs.continuations(request_id)
        if choice is not None:
            jobs = [job for job in jobs if job.context.choice == choice and not job.will_fork]
        for job in jobs:
            job.context.status = GenerationStatus.ABORTED
            self._end(job)
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
        ended = self._end_overdue()
        self._make_way()
        for replica in self._replicas:
            for job in reversed(replica.running.copy()):
                if replica.has_outgrown(job):
                    self._send_back(job)
        num_preemptions = self._num_preemptions
        chosen = [self._grow_all(replica, ended) for replica in self._replicas]
        budgets = [r.step_limit(job.context for job in jobs) for r, jobs in zip(self._replicas, chosen, strict=True)]
        rows: list[list[ScheduledRow]] = [[] for _ in self._replicas]
        for replica, jobs in zip(self._replicas, chosen, strict=True):
            # Who generates goes first, with a token each: reading long prompts must not hold them up.
            for job in sorted(jobs, key=lambda job: job.context.tokens.remaining_length > 1):
                if budgets[replica.number] > 0:
                    rows[replica.number].append(replica.row(job, budgets[replica.number]))
                    budgets[replica.number] -= rows[replica.number][-1].cache.num_new
        has_preempted = self._num_preemptions > num_preemptions
        if not self._suspects and not (has_preempted and any(rows)):
            self._admit_waiting(rows, budgets, ended)
        return ScheduledBatch(tuple(map(tuple, rows)), self._num_steps(rows), tuple(ended))

    def update(self, batch: ScheduledBatch, results: Sequence[StepResult]) -> list[GenerationDelta]:
        """Takes in what the step computed.

        Tokens behind a request's last one, which a turn of several forward passes may have made, are dropped.

        Args:
            batch: The step's decision.
            results: One entry per forward pass.
        """
        deltas = list(batch.ended)
        position = 0
        for row in batch.rows:
            job = self._jobs.find(row.cache.sequence, row.context)
            if job is None:  # aborted while the step ran
                position += len(row.samples)
                continue
            if job.is_suspect:
                self._clear(job)
            if row.samples:
                deltas += self._take_tokens(job, row, position, results)
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
            job = self._jobs.find(row.cache.sequence, row.context)
            if job is None:
                continue
            if job.is_suspect:
                failure = error if isinstance(error, PunaError) else StepFailedError(error)
                deltas += self._end(job, FinishReason.ERROR, failure)
            else:
                job.is_suspect = True
                self._suspects.append(job)
                self._num_retries += 1
        return deltas

    def _end_overdue(self) -> list[GenerationDelta]:
        """Ends the requests whose deadline has passed; they keep what they got."""
        ended: list[GenerationDelta] = []
        for job in self._jobs.overdue(self._clock):
            job.context.status = GenerationStatus.ABORTED
            job.context.stop_reason = DEADLINE
            ended += self._end(job, FinishReason.ABORT)
        return ended

    def _make_way(self) -> None:
        """Sends less urgent requests back while a more urgent one finds no place."""
        while self._waiting:
            urgent = self._waiting.first
            last = [replica.running[-1] for replica in self._replicas if replica.running]
            victims = [job for job in last if job.context.priority > urgent.context.priority]
            if not victims or self._place(urgent) is not None:
                return
            self._preempt(max(victims))

    def _grow_all(self, replica: Replica, ended: list[GenerationDelta]) -> list[Job]:
        """Who takes part in the next step; their pages are there, taken from the least urgent ones if need be."""
        chosen = [job for job in self._suspects[:1] if job.replica == replica.number]
        if not self._suspects:
            chosen = replica.running[: self._limits.max_batch_size]
        for job in chosen:
            while job.is_running:
                try:
                    replica.grow(job)
                    break
                except InsufficientBlocksError as error:
                    if len(replica.running) == 1:
                        ended += self._end(job, FinishReason.ERROR, error)
                    else:
                        self._preempt(replica.running[-1])
        return [job for job in chosen if job.is_running]

    def _admit_waiting(self, rows: list[list[ScheduledRow]], budgets: list[int], ended: list[GenerationDelta]) -> None:
        """Begins requests as long as there is room for the first one that waits."""
        while self._waiting:
            job = self._waiting.first
            rooms = [self._room(r, rows[r.number], budgets[r.number], job) for r in self._replicas]
            closed = [number for number, room in enumerate(rooms) if room <= 0]
            closed += [r.number for r in self._replicas if rows[r.number] and r.must_be_whole(job, rooms[r.number])]
            place = self._place(job, closed)
            if place is None:
                return
            replica, prefix = place
            try:
                replica.admit(job, prefix)
            except InsufficientBlocksError as error:  # not even the empty cache holds it
                ended += self._end(job, FinishReason.ERROR, error)
                continue
            self._waiting.remove(job)
            if len(job.context.tokens) == job.context.admission_length:
                self._num_prompt_tokens += job.context.admission_length
                self._num_cached_tokens += job.context.cached_prefix_length
            rows[replica.number].append(replica.row(job, rooms[replica.number]))
            budgets[replica.number] = rooms[replica.number] - rows[replica.number][-1].cache.num_new

    @staticmethod
    def _room(replica: Replica, rows: Sequence[ScheduledRow], budget: int, job: Job) -> int:
        """How many tokens a step may read of a waiting request: one that needs logits makes the whole step smaller."""
        return min(budget, replica.step_limit([job.context]) - sum(row.cache.num_new for row in rows))

    def _place(self, job: Job, closed: Sequence[int] = ()) -> tuple[Replica, PrefixMatch] | None:
        """Where a waiting request begins: where most of it is cached, among the replicas with about the least work."""
        open_ones = [r for r in self._replicas if r.has_slot and r.number not in closed]
        least = min((len(replica.running) for replica in open_ones), default=0)
        choices = [(r, r.match(job)) for r in open_ones if len(r.running) <= least + _SLACK]
        choices.sort(key=lambda choice: (-choice[1].num_tokens, len(choice[0].running)))
        return next((choice for choice in choices if choice[0].has_room(job, choice[1])), None)

    def _num_steps(self, rows: Sequence[Sequence[ScheduledRow]]) -> int:
        """How many forward passes can be made before the scheduler is needed again."""
        steps = self._limits.max_num_steps
        if steps == 1 or any(not _only_generates(row) for replica in rows for row in replica):
            return 1
        for replica, some in zip(self._replicas, rows, strict=True):
            taking_part = {row.cache.sequence for row in some}
            steps = replica.num_steps([job for job in replica.running if job.sequence in taking_part], steps)
        return steps

    def _take_tokens(
        self, job: Job, row: ScheduledRow, position: int, results: Sequence[StepResult]
    ) -> list[GenerationDelta]:
        """Gives a request, and the forks that begin here, what was drawn for them from `position` on."""
        replica = self._replicas[job.replica]
        errors = [self._append(row.context, position, results)]
        jobs = [job]
        if errors[0] is None:
            replica.commit(job)
        for number, context in enumerate(row.samples[1:], 1):
            fork = self._jobs.add(context, job)
            replica.fork(job, fork, len(context.tokens))
            errors.append(self._append(context, position + number, results))
            jobs.append(fork)
        return [self._tell(taker, error) for taker, error in zip(jobs, errors, strict=True)]

    @staticmethod
    def _append(context: TextContext, position: int, results: Sequence[StepResult]) -> PunaError | None:
        for result in results:
            error = result.sampled.errors[position]
            if error is not None or context.is_done:
                return error
            records = result.sampled.log_probabilities
            record = records[position] if records else None
            context.update(int(result.sampled.tokens[position]), record)
        return None

    def _tell(self, job: Job, error: PunaError | None) -> GenerationDelta:
        """What a request got in this step; one that is done ends."""
        context = job.context
        output = context.to_generation_output()
        self._num_generated_tokens += len(output.tokens)
        if error is not None or context.is_done:
            self._end(job)
        return GenerationDelta(
            request_id=context.request_id,
            tokens=tuple(output.tokens),
            finish_reason=FinishReason.ERROR if error is not None else _FINISH_REASONS[context.status],
            stop_reason=context.stop_reason,
            error=error,
            log_probabilities=tuple(output.log_probabilities or ()),
            num_cached_tokens=output.num_cached_tokens,
            choice=context.choice,
        )

    def _end_reading(self, job: Job) -> GenerationDelta:
        """Ends a request that wanted its prompt read and no token; its pages stay behind for others to find."""
        tokens = job.context.tokens
        self._replicas[job.replica].kv.commit(job.sequence, tokens.all, len(tokens))
        job.context.status = GenerationStatus.MAXIMUM_LENGTH
        (delta,) = self._end(job, FinishReason.LENGTH)
        return delta

    def _end(
        self, job: Job, reason: FinishReason | None = None, error: PunaError | None = None
    ) -> list[GenerationDelta]:
        """Lets go of a request; what is said about it goes to all continuations that it would have had."""
        context = job.context
        choices = range(context.num_choices) if job.will_fork else [context.choice]
        self._clear(job)
        if job.is_running:
            self._replicas[job.replica].drop(job)
        else:
            self._waiting.remove(job)
        self._jobs.remove(job)
        return [
            GenerationDelta(
                context.request_id,
                finish_reason=reason,
                stop_reason=context.stop_reason,
                error=error,
                num_cached_tokens=context.cached_prefix_length,
                choice=choice,
            )
            for choice in choices
        ]

    def _preempt(self, job: Job) -> None:
        self._num_preemptions += 1
        self._send_back(job)

    def _send_back(self, job: Job) -> None:
        """Makes a running request wait again, where it belongs by rank: it will be computed anew."""
        self._clear(job)
        self._replicas[job.replica].drop(job)
        job.context.reset()
        self._waiting.add(job)

    def _clear(self, job: Job) -> None:
        """Takes back that a request may be why a step failed."""
        if job.is_suspect:
            job.is_suspect = False
            self._suspects.remove(job)


def _only_generates(row: ScheduledRow) -> bool:
    """Whether a request can make several forward passes in a row."""
    context = row.context
    return len(row.samples) == 1 and not context.needs_prompt_rows and not context.sampling_params.logits_processors


_FINISH_REASONS = {
    GenerationStatus.ACTIVE: None,
    GenerationStatus.END_OF_SEQUENCE: FinishReason.STOP,
    GenerationStatus.MAXIMUM_LENGTH: FinishReason.LENGTH,
    GenerationStatus.ABORTED: FinishReason.ABORT,
}
