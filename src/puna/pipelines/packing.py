"""`Packer`: which requests take part in the next step, and with how many tokens.

There is no phase of prompts and no phase of generation. A request has tokens, and a count of those that are computed;
a step lets the second catch up with the first, within a budget of tokens. A long prompt read in chunks, a cached
prefix and the one token of a running generation are all this subtraction.

When a running request needs a page and none is free, the least urgent and youngest gives its pages back and waits: its
tokens become a new prompt, which later steps read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from puna.errors import InsufficientBlocksError
from puna.pipelines.batch import FinishReason, GenerationDelta, ScheduledBatch, ScheduledRow
from puna.pipelines.jobs import Job
from puna.pipelines.kv_cache import PrefixMatch
from puna.pipelines.replica import Replica, SchedulerLimits
from puna.pipelines.roster import Roster

_SLACK: Final = 2  # requests that a replica may run more than another for the sake of a cached prefix


class Packer:
    """Packs a batch per replica.

    Args:
        roster: All requests.
        limits: What a step may hold.
    """

    def __init__(self, roster: Roster, limits: SchedulerLimits) -> None:
        self._roster = roster
        self._limits = limits

    def pack(self) -> ScheduledBatch:
        """Decides on the next step; requests begin, end and are interrupted by that."""
        roster = self._roster
        ended = roster.end_overdue()
        self._make_way()
        for replica in roster.replicas:
            for job in replica.outgrown():
                roster.send_back(job)
        num_preemptions = roster.num_preemptions
        rows: list[list[ScheduledRow]] = []
        budgets: list[int] = []
        for replica in roster.replicas:
            jobs = self._grow_all(replica, ended)
            budgets.append(replica.step_limit([job.context for job in jobs]))
            rows.append([])
            # Who generates goes first, with a token each: reading long prompts must not hold them up.
            for job in sorted(jobs, key=_reads_prompt):
                if budgets[-1] > 0:
                    row = replica.row(job, budgets[-1])
                    rows[-1].append(row)
                    budgets[-1] -= row.cache.num_new
        has_preempted = roster.num_preemptions > num_preemptions
        if roster.waiting and not roster.suspects and not (has_preempted and any(rows)):
            self._admit_waiting(rows, budgets, ended)
        return ScheduledBatch(tuple(map(_by_adapter, rows)), self._num_steps(rows), tuple(ended))

    def _make_way(self) -> None:
        """Sends less urgent requests back while a more urgent one finds no place."""
        roster = self._roster
        while roster.waiting:
            urgent = roster.waiting.first
            last = [replica.running[-1] for replica in roster.replicas if replica.running]
            victims = [job for job in last if job.context.priority > urgent.context.priority]
            if not victims or self._place(urgent) is not None:
                return
            roster.preempt(max(victims))

    def _grow_all(self, replica: Replica, ended: list[GenerationDelta]) -> list[Job]:
        """Who takes part in the next step; their pages are there, taken from the least urgent ones if need be."""
        roster = self._roster
        if roster.suspects:
            chosen = [job for job in roster.suspects[:1] if job.replica == replica.number]
        else:
            chosen = replica.running[: self._limits.max_batch_size]
        for job in chosen:
            while job.key is not None:
                try:
                    replica.grow(job)
                    break
                except InsufficientBlocksError as error:
                    if len(replica.running) == 1:
                        ended += roster.end(job, FinishReason.ERROR, error)
                    else:
                        roster.preempt(replica.running[-1])
        return [job for job in chosen if job.key is not None]

    def _admit_waiting(self, rows: list[list[ScheduledRow]], budgets: list[int], ended: list[GenerationDelta]) -> None:
        """Begins requests as long as there is room for the first one that waits."""
        roster = self._roster
        while roster.waiting:
            job = roster.waiting.first
            rooms = [self._room(r, rows[r.number], budgets[r.number], job) for r in roster.replicas]
            closed = [number for number, room in enumerate(rooms) if room <= 0]
            closed += [r.number for r in roster.replicas if rows[r.number] and r.must_be_whole(job, rooms[r.number])]
            place = self._place(job, closed)
            if place is None:
                return
            replica, prefix = place
            try:
                replica.admit(job, prefix)
            except InsufficientBlocksError as error:  # not even the empty cache holds it
                ended += roster.end(job, FinishReason.ERROR, error)
                continue
            roster.note_begin(job)
            rows[replica.number].append(replica.row(job, rooms[replica.number]))
            budgets[replica.number] = rooms[replica.number] - rows[replica.number][-1].cache.num_new

    @staticmethod
    def _room(replica: Replica, rows: Sequence[ScheduledRow], budget: int, job: Job) -> int:
        """How many tokens a step may read of a waiting request: one that needs logits makes the whole step smaller."""
        return min(budget, replica.step_limit([job.context]) - sum(row.cache.num_new for row in rows))

    def _place(self, job: Job, closed: Sequence[int] = ()) -> tuple[Replica, PrefixMatch] | None:
        """Where a waiting request begins: where most of it is cached, among the replicas with about the least work."""
        open_ones = [r for r in self._roster.replicas if r.has_slot and r.takes_adapter_of(job)]
        open_ones = [r for r in open_ones if r.number not in closed]
        least = min((len(replica.running) for replica in open_ones), default=0)
        choices = [(r, r.match(job)) for r in open_ones if len(r.running) <= least + _SLACK]
        choices.sort(key=lambda choice: (-choice[1].num_tokens, len(choice[0].running)))
        return next((choice for choice in choices if choice[0].has_room(job, choice[1])), None)

    def _num_steps(self, rows: Sequence[Sequence[ScheduledRow]]) -> int:
        """How many forward passes can be made before the scheduler is needed again."""
        steps = self._limits.max_num_steps
        if steps == 1 or any(not _only_generates(row) for replica in rows for row in replica):
            return 1
        for replica, some in zip(self._roster.replicas, rows, strict=True):
            taking_part = {row.cache.sequence for row in some}
            steps = replica.num_steps([job for job in replica.running if job.sequence in taking_part], steps)
        return steps


def _by_adapter(rows: Sequence[ScheduledRow]) -> tuple[ScheduledRow, ...]:
    """Rows with one adapter side by side, in the order in which adapters come first; rows without one behind them."""
    order: dict[str, int] = {}
    for row in rows:
        if row.context.adapter is not None:
            order.setdefault(row.context.adapter.content_id, len(order))
    if not order:
        return tuple(rows)
    adapters = (row.context.adapter for row in rows)
    ranks = [len(order) if adapter is None else order[adapter.content_id] for adapter in adapters]
    return tuple(rows[index] for index in sorted(range(len(rows)), key=ranks.__getitem__))


def _reads_prompt(job: Job) -> bool:
    return job.context.tokens.remaining_length > 1


def _only_generates(row: ScheduledRow) -> bool:
    """Whether a request can make several forward passes in a row."""
    context = row.context
    return len(row.samples) == 1 and not context.needs_prompt_rows and not context.sampling_params.logits_processors
