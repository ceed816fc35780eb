"""`Roster`: all requests that have not ended: who waits, who runs where, and how they come and go."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from puna.errors import PunaError
from puna.pipelines.batch import FinishReason, GenerationDelta, SchedulerCounts
from puna.pipelines.context import DEADLINE, GenerationStatus
from puna.pipelines.jobs import Job, JobBook, WaitingLine
from puna.pipelines.kv_cache import BlockCounts
from puna.pipelines.replica import Replica


class Roster:
    """Keeps the books of requests; it decides nothing.

    Args:
        replicas: Where requests run.
        clock: Seconds, as deadlines are stated in.

    Attributes:
        replicas: Where requests run.
        waiting: Requests that hold no pages.
        jobs: All of them.
        suspects: Running ones that took part in a step that failed; each is tried once more, alone.
        num_prompt_tokens: Tokens of the prompts of all requests that began.
        num_cached_tokens: How many of these were found in the prefix cache.
        num_generated_tokens: Tokens that were drawn and given out.
        num_preemptions: How often a request gave its pages back to let another one go on.
        num_retries: How often a request was tried again after a failed step.
    """

    def __init__(self, replicas: Sequence[Replica], clock: Callable[[], float]) -> None:
        self.replicas = replicas
        self.waiting = WaitingLine()
        self.jobs = JobBook()
        self.suspects: list[Job] = []
        self.num_prompt_tokens = self.num_cached_tokens = self.num_generated_tokens = 0
        self.num_preemptions = self.num_retries = 0
        self._clock = clock

    def counts(self) -> SchedulerCounts:
        """What happened so far, and what is under way."""
        pools = [replica.kv.counts() for replica in self.replicas]
        return SchedulerCounts(
            num_waiting=len(self.waiting),
            num_running=len(self.jobs) - len(self.waiting),
            blocks=BlockCounts(
                *(sum(values) for values in zip(*((p.total, p.free, p.cached) for p in pools), strict=True))
            ),
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_generated_tokens=self.num_generated_tokens,
            num_preemptions=self.num_preemptions,
            num_retries=self.num_retries,
            store=self.replicas[0].kv.store_counts(),
        )

    def note_begin(self, job: Job) -> None:
        """A waiting request runs now."""
        self.waiting.remove(job)
        context = job.context
        if len(context.tokens) == context.admission_length:
            self.num_prompt_tokens += context.admission_length
            self.num_cached_tokens += context.cached_prefix_length

    def preempt(self, job: Job) -> None:
        """Makes a running request give its pages to others."""
        self.num_preemptions += 1
        self.send_back(job)

    def send_back(self, job: Job) -> None:
        """Makes a running request wait again, where it belongs by rank: it will be computed anew."""
        self.clear(job)
        self.replicas[job.replica].drop(job)
        job.context.reset()
        self.waiting.add(job)

    def suspect(self, job: Job) -> None:
        """A request may be why a step failed: it is to run alone."""
        job.is_suspect = True
        self.suspects.append(job)
        self.num_retries += 1

    def clear(self, job: Job) -> None:
        """Takes back that a request may be why a step failed."""
        if job.is_suspect:
            job.is_suspect = False
            self.suspects.remove(job)

    def end_overdue(self) -> list[GenerationDelta]:
        """Ends the requests whose deadline has passed; they keep what they got."""
        ended: list[GenerationDelta] = []
        for job in self.jobs.overdue(self._clock):
            job.context.status = GenerationStatus.ABORTED
            job.context.stop_reason = DEADLINE
            ended += self.end(job, FinishReason.ABORT)
        return ended

    def end(
        self, job: Job, reason: FinishReason | None = None, error: PunaError | None = None
    ) -> list[GenerationDelta]:
        """Lets go of a request; what is said about it goes to all continuations that it would have had."""
        context = job.context
        choices = range(context.num_choices) if job.will_fork else [context.choice]
        self.clear(job)
        if job.is_running:
            self.replicas[job.replica].drop(job)
        else:
            self.waiting.remove(job)
        self.jobs.remove(job)
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
