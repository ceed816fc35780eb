"""`Replica`: the requests that run on one copy of the model, and their pages."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from puna.errors import InsufficientBlocksError
from puna.pipelines.batch import ScheduledRow
from puna.pipelines.context import TextContext
from puna.pipelines.jobs import Job
from puna.pipelines.kv_cache import CacheKey, CacheRow, PagedKVCacheManager, PrefixMatch


class RopeLengths(Protocol):
    """What the scheduler asks a rotary embedding: `puna.nn.rotary_embedding.RotaryEmbedding` answers it."""

    def request_length(self, prompt_length: int, total_length: int) -> int:
        """The length that decides a request's frequencies."""
        ...

    def regime(self, length: int) -> int:
        """A number that is equal for two lengths exactly if their frequencies are."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """What a step may hold.

    Attributes:
        max_batch_size: Requests of a replica in a step.
        max_step_tokens: Tokens of a replica in a step, over all requests.
        max_request_tokens: Tokens of one request in a step; 0: as many as the step may hold.
        max_logit_tokens: Tokens of a replica in a step that returns the logits of all of them, because a reader needs
            them.
        max_num_steps: Forward passes between two decisions of the scheduler, where every request only generates.
        max_waiting: Requests that may wait; None: any number.
        max_num_loras: Different adapters of a replica's running requests.
        admission_watermark: Share of the KV cache's pages above which no request begins beside others.
        use_chunks: Whether a prompt may be read in several steps. If not, one that is longer than the budget is read
            alone.
    """

    max_batch_size: int = 1
    max_step_tokens: int = 512
    max_request_tokens: int = 0
    max_logit_tokens: int = 128
    max_num_steps: int = 1
    max_waiting: int | None = None
    max_num_loras: int = 1
    admission_watermark: float = 0.95
    use_chunks: bool = True

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_step_tokens", "max_logit_tokens", "max_num_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_request_tokens < 0:
            raise ValueError(f"max_request_tokens must be at least 0, got {self.max_request_tokens}")
        if self.max_batch_size > self.max_step_tokens:
            raise ValueError(f"max_batch_size ({self.max_batch_size}) exceeds max_step_tokens ({self.max_step_tokens})")


class Replica:
    """Runs requests on one copy of the model.

    Args:
        number: Which replica this is.
        kv: Its part of the KV cache.
        limits: What a step may hold.
        rope: Decides when a request's cached keys are of no use any more; None: never.

    Attributes:
        running: Requests that hold pages, by rank.
    """

    def __init__(
        self, number: int, kv: PagedKVCacheManager, limits: SchedulerLimits, rope: RopeLengths | None = None
    ) -> None:
        self.number = number
        self.kv = kv
        self.running: list[Job] = []
        self._limits = limits
        self._rope = rope

    @property
    def has_slot(self) -> bool:
        """Whether another request may begin."""
        return len(self.running) < self._limits.max_batch_size

    def takes_adapter_of(self, job: Job) -> bool:
        """Whether a waiting request has no adapter, that of a running one, or one that is within the limit."""
        adapter = job.context.adapter
        if adapter is None:
            return True
        used = {other.context.adapter.content_id for other in self.running if other.context.adapter is not None}
        return adapter.content_id in used or len(used) < self._limits.max_num_loras

    def match(self, job: Job) -> PrefixMatch:
        """The beginning of a waiting request that is cached here."""
        context = job.context
        return self.kv.match(_without_rows(context), self.key_of(context))

    def has_room(self, job: Job, prefix: PrefixMatch) -> bool:
        """Whether there are pages for all tokens of a waiting request."""
        watermark = self._limits.admission_watermark
        return not self.running or self.kv.has_room(len(job.context.tokens), prefix, watermark)

    def admit(self, job: Job, prefix: PrefixMatch) -> None:
        """Begins a request.

        Raises:
            InsufficientBlocksError: Not even the empty cache holds it.
        """
        context = job.context
        tokens, key = context.tokens, self.key_of(context)
        self.kv.reserve(job.sequence, len(tokens), key, prefix)
        num_cached = prefix.num_tokens + self.kv.restore(job.sequence, _without_rows(context), prefix)
        tokens.skip_processing(num_cached)
        if len(tokens) == context.admission_length:
            context.cached_prefix_length = num_cached
        self._start(job, key)

    def fork(self, parent: Job, child: Job, num_computed: int) -> None:
        """Begins a request with the pages of a running one's first `num_computed` tokens."""
        assert parent.key is not None
        self.kv.fork(parent.sequence, child.sequence, num_computed)
        self._start(child, parent.key)

    def outgrown(self) -> list[Job]:
        """Running requests that outgrew the frequencies that their keys were made with, the last one first."""
        if self._rope is None:
            return []
        return [job for job in reversed(self.running) if self.key_of(job.context) != job.key]

    def grow(self, job: Job, further: int = 0) -> None:
        """Gets the pages for all tokens of a running request, and for `further` ones.

        Raises:
            InsufficientBlocksError: Too few are free; it keeps what it has.
        """
        assert job.key is not None
        tokens = job.context.tokens
        self.kv.reserve(job.sequence, len(tokens) + further, job.key, num_cached=tokens.processed_length)

    def drop(self, job: Job) -> None:
        """Ends a request, or interrupts it: its pages are free."""
        self.running.remove(job)
        self.kv.release(job.sequence)
        job.key = None

    def commit(self, job: Job) -> None:
        """Makes the full pages of a request findable."""
        tokens = job.context.tokens
        if self.kv.has_filled_page(job.sequence, tokens.processed_length):
            self.kv.commit(job.sequence, tokens.all, tokens.processed_length)

    def row(self, job: Job, budget: int) -> ScheduledRow:
        """A request's part in a step: all its tokens that are not computed, or as many as there is room for."""
        context, tokens = job.context, job.context.tokens
        room = min(budget, self._limits.max_request_tokens or budget)
        if self._limits.use_chunks and room < tokens.active_length:
            tokens.chunk(room)
        length = None if self._rope is None else self._request_length(self._rope, context, 0)
        cache = CacheRow(job.sequence, tokens.processed_length, tokens.active_length, length)
        samples: tuple[TextContext, ...] = () if tokens.is_chunked or context.is_read_only else (context,)
        if samples and job.will_fork:
            samples += tuple(context.fork(choice) for choice in range(1, context.num_choices))
        return ScheduledRow(context, cache, samples)

    def must_be_whole(self, job: Job, budget: int) -> bool:
        """Whether a request does not fit into the rest of a step and may not be divided."""
        return not self._limits.use_chunks and len(job.context.tokens) > budget

    def step_limit(self, contexts: Iterable[TextContext]) -> int:
        """How many tokens a step with these requests may have."""
        limits = self._limits
        needs_logits = any(c.reader is not None and c.reader.needs_logits and c.needs_prompt_rows for c in contexts)
        return min(limits.max_step_tokens, limits.max_logit_tokens) if needs_logits else limits.max_step_tokens

    def num_steps(self, jobs: list[Job], most: int) -> int:
        """How many forward passes these requests can make, at most `most`; their pages are reserved."""
        steps = most
        for job in jobs:
            context = job.context
            steps = min(steps, max(1, context.max_length - len(context.tokens)))
            while self._rope is not None and steps > 1 and self.key_of(context, steps - 1) != job.key:
                steps -= 1
        for job in jobs:
            while steps > 1:
                try:
                    self.grow(job, steps - 1)
                    break
                except InsufficientBlocksError:
                    steps -= 1
        return steps

    def _start(self, job: Job, key: CacheKey) -> None:
        job.key, job.replica = key, self.number
        insort(self.running, job)

    def key_of(self, context: TextContext, further: int = 0) -> CacheKey:
        """What a request's pages are found by when it has `further` tokens more than now."""
        regime = 0 if self._rope is None else self._rope.regime(self._request_length(self._rope, context, further))
        adapter = None if context.adapter is None else context.adapter.content_id
        return CacheKey(rope_regime=regime, adapter=adapter, salt=context.cache_salt)

    @staticmethod
    def _request_length(rope: RopeLengths, context: TextContext, further: int) -> int:
        return rope.request_length(context.admission_length, len(context.tokens) + further)


def _without_rows(context: TextContext) -> npt.NDArray[np.int64]:
    """The tokens that may be found in the cache: tokens found there have no rows for a reader.

    Of tokens that are looked up the last is never a cached one.
    """
    tokens = context.tokens.all
    reader = context.reader if context.needs_prompt_rows else None
    return tokens if reader is None else tokens[: reader.first_position + 1]
