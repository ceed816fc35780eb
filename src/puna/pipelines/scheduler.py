"""The scheduler: which requests take part in the next step, and with how many tokens.

There is no phase of prompts and no phase of generation. A request has tokens, and a count of those that are computed;
a step lets the second catch up with the first, within a budget of tokens. A long prompt read in chunks, a cached
prefix and the one token of a running generation are all this subtraction.

Requests are served first come, first served. When a running one needs a page and none is free, the youngest gives its
pages back and waits: its tokens become a new prompt, which later steps read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from puna.errors import InsufficientBlocksError, InvalidRequestError, PunaError, QueueFullError
from puna.pipelines.batch import FinishReason, GenerationDelta, ScheduledBatch, ScheduledRow, StepResult
from puna.pipelines.context import GenerationStatus, TextContext
from puna.pipelines.kv_cache import CacheKey, CacheRow, PagedKVCacheManager, PrefixMatch
from puna.pipelines.request import RequestID


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
        max_batch_size: Requests in a step.
        max_step_tokens: Tokens in a step, over all requests.
        max_request_tokens: Tokens of one request in a step; 0: as many as the step may hold.
        max_num_steps: Forward passes between two decisions of the scheduler, where every request only generates.
        max_waiting: Requests that may wait; None: any number.
        admission_watermark: Share of the KV cache's pages above which no request begins beside others.
        use_chunks: Whether a prompt may be read in several steps. If not, one that is longer than the budget is read
            alone.
    """

    max_batch_size: int = 1
    max_step_tokens: int = 512
    max_request_tokens: int = 0
    max_num_steps: int = 1
    max_waiting: int | None = None
    admission_watermark: float = 0.95
    use_chunks: bool = True

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_step_tokens", "max_num_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_request_tokens < 0:
            raise ValueError(f"max_request_tokens must be at least 0, got {self.max_request_tokens}")
        if self.max_batch_size > self.max_step_tokens:
            raise ValueError(f"max_batch_size ({self.max_batch_size}) exceeds max_step_tokens ({self.max_step_tokens})")


class Scheduler:
    """Owns requests from `add` until they end.

    Args:
        kv: The KV cache's manager.
        limits: What a step may hold.
        rope: Decides when a request's cached keys are of no use any more; None: never.
    """

    def __init__(
        self, kv: PagedKVCacheManager, limits: SchedulerLimits | None = None, rope: RopeLengths | None = None
    ) -> None:
        self._kv = kv
        self._limits = limits or SchedulerLimits()
        self._rope = rope
        self._waiting: list[TextContext] = []  # first come, first served
        self._running: dict[RequestID, TextContext] = {}  # oldest first
        self._keys: dict[RequestID, CacheKey] = {}  # what each running request's pages are found by
        self._num_preemptions = 0

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._waiting or self._running)

    @property
    def num_preemptions(self) -> int:
        """How often a request gave its pages back to let an older one go on."""
        return self._num_preemptions

    def add(self, context: TextContext) -> None:
        """Takes a request in.

        Raises:
            InvalidRequestError: It asks for what is not there, or can never fit the cache.
            QueueFullError: Too many wait.
        """
        limit = self._limits.max_waiting
        if limit is not None and len(self._waiting) >= limit:
            raise QueueFullError(limit)
        if context.json_schema is not None or context.grammar is not None or context.matcher is not None:
            raise InvalidRequestError("structured output is not available", param="response_format")
        if context.target_endpoint is not None:
            raise InvalidRequestError("requests are not handed to other workers", param="target_endpoint")
        if context.sampling_params.thinking_temperature is not None:
            raise InvalidRequestError("reasoning sections are not told apart", param="thinking_temperature")
        known = {other.request_id for other in self._waiting} | self._running.keys()
        if context.request_id in known:
            raise InvalidRequestError(f"{context.request_id} is taken", param="request_id")
        excess = len(context.tokens) - self._kv.max_tokens
        if excess > 0:
            raise InvalidRequestError(
                f"it has {len(context.tokens)} tokens, {excess} more than the KV cache holds ({self._kv.max_tokens})",
                param="prompt",
            )
        self._waiting.append(context)

    def abort(self, request_id: RequestID) -> bool:
        """Ends a request whose client went away or whose text met a stop string; False when it has ended already."""
        waiting = [context for context in self._waiting if context.request_id == request_id]
        for context in waiting:
            self._waiting = [other for other in self._waiting if other is not context]
            context.status = GenerationStatus.CANCELLED
        running = self._running.get(request_id)
        if running is not None:
            running.status = GenerationStatus.CANCELLED
            self._drop(running)
        return bool(waiting) or running is not None

    def schedule(self) -> ScheduledBatch:
        """Decides on the next step."""
        rows: list[ScheduledRow] = []
        ended: list[GenerationDelta] = []
        budget = self._limits.max_step_tokens
        for context in reversed(list(self._running.values())):
            if self._key(context) != self._keys[context.request_id]:
                self._send_back(context)  # it outgrew the frequencies that its keys were made with
        for context in list(self._running.values()):
            if budget > 0 and context.request_id in self._running and self._grow(context, ended):
                rows.append(self._row(context, budget))
                budget -= rows[-1].cache.num_new
        while self._waiting and budget > 0 and len(self._running) < self._limits.max_batch_size:
            context = self._waiting[0]
            must_be_whole = not self._limits.use_chunks or context.is_prompt_echoed
            if rows and must_be_whole and len(context.tokens) > budget:
                break
            if not self._admit(context, ended):
                break
            if context.request_id in self._running:
                rows.append(self._row(context, budget))
                budget -= rows[-1].cache.num_new
        return ScheduledBatch(tuple(rows), self._num_steps(rows), tuple(ended))

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
            context = row.context
            if context.is_done:  # aborted while the step ran
                position += row.samples
            elif row.samples:
                deltas.append(self._take_tokens(context, position, results))
                position += 1
            else:
                context.tokens.advance_chunk()
                self._commit(context)
        return deltas

    def _take_tokens(self, context: TextContext, position: int, results: Sequence[StepResult]) -> GenerationDelta:
        error: PunaError | None = None
        for result in results:
            error = result.sampled.errors[position]
            if error is not None or context.is_done:
                break
            record = result.log_probabilities[position] if result.log_probabilities else None
            context.update(int(result.sampled.tokens[position]), record)
        output = context.to_generation_output()
        if error is None:
            self._commit(context)
        if error is not None or context.is_done:
            self._drop(context)
        return GenerationDelta(
            request_id=context.request_id,
            tokens=tuple(output.tokens),
            finish_reason=FinishReason.ERROR if error is not None else _FINISH_REASONS[context.status],
            error=error,
            log_probabilities=tuple(output.log_probabilities or ()),
            num_cached_tokens=output.num_cached_tokens,
        )

    def _row(self, context: TextContext, budget: int) -> ScheduledRow:
        """The request's part in the step: all its tokens that are not computed, or as many as there is room for."""
        tokens = context.tokens
        room = min(budget, self._limits.max_request_tokens or budget)
        # Log-probabilities of a prompt are made from one step's logits, so such a prompt is read whole.
        if self._limits.use_chunks and room < tokens.active_length and not context.is_prompt_echoed:
            tokens.chunk(room)
        length = None if self._rope is None else self._request_length(context)
        cache = CacheRow(context.request_id, tokens.processed_length, tokens.active_length, length)
        return ScheduledRow(context, cache, samples=not tokens.is_chunked)

    def _grow(self, context: TextContext, ended: list[GenerationDelta]) -> bool:
        """Gets the pages that a running request needs now, from the youngest ones if need be; False: it does not
        run."""
        while True:
            try:
                self._kv.reserve(context.request_id, len(context.tokens), self._keys[context.request_id])
                return True
            except InsufficientBlocksError as error:
                if len(self._running) == 1:
                    self._drop(context)
                    ended.append(_failed(context, error))
                    return False
                victim = next(reversed(self._running.values()))
                self._num_preemptions += 1
                self._send_back(victim)
                if victim is context:
                    return False

    def _admit(self, context: TextContext, ended: list[GenerationDelta]) -> bool:
        """Moves the first waiting request to the running ones when there are pages for all its tokens.

        Returns:
            Whether the request waits no longer: it runs, or ended because not even an empty cache would hold it.
        """
        tokens = context.tokens.all
        key = self._key(context)
        prefix = PrefixMatch() if context.is_prompt_echoed else self._kv.match(tokens, key)
        if self._running and not self._kv.has_room(len(tokens), prefix, self._limits.admission_watermark):
            return False
        try:
            self._kv.reserve(context.request_id, len(tokens), key, prefix)
        except InsufficientBlocksError as error:
            if self._running:
                return False  # shared pages were free ones, and counted twice
            self._waiting.pop(0)
            ended.append(_failed(context, error))
            return True
        context.tokens.skip_processing(prefix.num_tokens)
        if len(tokens) == context.admission_length:
            context.cached_prefix_length = prefix.num_tokens
        self._waiting.pop(0)
        self._running[context.request_id] = context
        self._keys[context.request_id] = key
        return True

    def _num_steps(self, rows: Sequence[ScheduledRow]) -> int:
        """How many forward passes can be made before the scheduler is needed again."""
        steps = self._limits.max_num_steps
        for row in rows:
            context = row.context
            if not row.samples or context.is_prompt_echoed or context.sampling_params.logits_processors:
                return 1
            steps = min(steps, max(1, context.max_length - len(context.tokens)))
            while steps > 1 and self._key(context, steps - 1) != self._keys[context.request_id]:
                steps -= 1
        for row in rows:
            context = row.context
            while steps > 1:
                try:
                    self._kv.reserve(
                        context.request_id, len(context.tokens) + steps - 1, self._keys[context.request_id]
                    )
                    break
                except InsufficientBlocksError:
                    steps -= 1
        return steps

    def _request_length(self, context: TextContext, further: int = 0) -> int:
        assert self._rope is not None
        return self._rope.request_length(context.admission_length, len(context.tokens) + further)

    def _key(self, context: TextContext, further: int = 0) -> CacheKey:
        """What the request's pages are found by when it has `further` tokens more than now."""
        regime = 0 if self._rope is None else self._rope.regime(self._request_length(context, further))
        return CacheKey(rope_regime=regime, salt=context.cache_salt)

    def _commit(self, context: TextContext) -> None:
        self._kv.commit(context.request_id, context.tokens.all, context.tokens.processed_length)

    def _send_back(self, context: TextContext) -> None:
        """Makes a running request wait again, first in line: it will be computed anew."""
        self._drop(context)
        context.reset()
        self._waiting.insert(0, context)

    def _drop(self, context: TextContext) -> None:
        del self._running[context.request_id]
        del self._keys[context.request_id]
        self._kv.release(context.request_id)


def _failed(context: TextContext, error: PunaError) -> GenerationDelta:
    return GenerationDelta(context.request_id, finish_reason=FinishReason.ERROR, error=error)


_FINISH_REASONS = {
    GenerationStatus.ACTIVE: None,
    GenerationStatus.END_OF_SEQUENCE: FinishReason.STOP,
    GenerationStatus.MAXIMUM_LENGTH: FinishReason.LENGTH,
    GenerationStatus.CANCELLED: FinishReason.CANCELLED,
}
