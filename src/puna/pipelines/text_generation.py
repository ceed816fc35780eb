"""The loop: schedule, execute, sample, update."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from puna.driver import Buffer
from puna.errors import InvalidRequestError
from puna.nn.kv_cache import KVCacheInputs, increment_cache_lengths
from puna.pipelines.batch import GenerationDelta, LoopTimes, ScheduledBatch, SchedulerCounts, StepResult
from puna.pipelines.context import LogProbabilities, TextContext
from puna.pipelines.lib.log_probabilities import MAX_TOP_N
from puna.pipelines.request import RequestID
from puna.pipelines.sampling import Sampler
from puna.pipelines.scheduler import Scheduler


class StepModel(Protocol):
    """What the loop asks of a model; `puna.pipelines.lib`'s pipeline models answer it."""

    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[TextContext]],
        kv_cache_inputs: KVCacheInputs[Buffer, Buffer] | None = None,
        return_n_logits: int = 1,
    ) -> Any:
        """The inputs of a step over the contexts' active tokens."""
        ...

    def prepare_next_token_inputs(self, next_tokens: Buffer, prev_model_inputs: Any) -> Any:
        """The inputs of the next step of a turn: one new token per request."""
        ...

    def execute(self, model_inputs: Any) -> Any:
        """One forward pass; `next_token_logits` of the result is float32 `[B, V]`."""
        ...


class LogProbabilityModel(Protocol):
    """What the loop asks of a model when a request wants log-probabilities."""

    def compute_log_probabilities(
        self,
        session: Any,
        model_inputs: Any,
        model_outputs: Any,
        next_tokens: Buffer,
        batch_top_n: list[int],
        batch_echo: list[bool],
    ) -> list[LogProbabilities | None]:
        """One record per request that asked, None for the others."""
        ...


class TextGenerationPipeline:
    """Turns requests into tokens, one step at a time.

    Args:
        model: Computes logits.
        scheduler: Owns the requests and their parts of the KV cache.
        sampler: Chooses tokens.
        session: The model's session, for log-probabilities.
        has_all_logits: Whether a step returns the logits of all its tokens, so that prompts can be echoed.
    """

    def __init__(
        self,
        model: StepModel,
        scheduler: Scheduler,
        sampler: Sampler,
        session: Any = None,
        has_all_logits: bool = False,
    ) -> None:
        self._has_all_logits = has_all_logits
        self._model = model
        self._scheduler = scheduler
        self._sampler = sampler
        self._session = session
        self._num_steps = 0
        self._step_s = self._model_s = 0.0

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return self._scheduler.has_work

    def counts(self) -> SchedulerCounts:
        """What the loop did so far, and what is under way."""
        return self._scheduler.counts()

    @property
    def times(self) -> LoopTimes:
        """How long it took so far."""
        return LoopTimes(self._num_steps, self._step_s, self._model_s)

    def check(self, context: TextContext) -> None:
        """Refuses what can never be served. It looks at nothing that changes, so that any thread may ask.

        Raises:
            InvalidRequestError: The request asks for what is not there, or can never fit the cache.
        """
        top_n = context.log_probabilities
        if top_n > MAX_TOP_N:
            raise InvalidRequestError(f"must be from 0 to {MAX_TOP_N}, got {top_n}", param="logprobs")
        if context.is_prompt_echoed and not self._has_all_logits:
            raise InvalidRequestError(
                "log-probabilities of the prompt need the logits of every token; load the model with enable_echo",
                param="echo",
            )
        self._scheduler.check(context)

    def add(self, context: TextContext) -> None:
        """Takes a request in; `step` answers it.

        Raises:
            InvalidRequestError: It asks for what is not there, can never fit the cache, or has the name of another.
            QueueFullError: Too many wait.
        """
        self.check(context)
        self._scheduler.add(context)

    def fork(self, parent_id: RequestID, child: TextContext) -> None:
        """Takes in a request that begins as a running one does, and shares its pages. As `Scheduler.fork`."""
        self.check(child)
        self._scheduler.fork(parent_id, child)

    def abort(self, request_id: RequestID, choice: int | None = None) -> bool:
        """Ends a request, or one continuation of it, at once; False when it has ended already."""
        return self._scheduler.abort(request_id, choice)

    def step(self) -> list[GenerationDelta]:
        """One turn of the loop.

        Whatever goes wrong while it computes ends at most the requests that caused it: those of a failed step are
        tried once more, each by itself.

        Returns:
            What changed, one entry per request that got tokens or ended.
        """
        begin = time.perf_counter()
        batch = self._scheduler.schedule()
        if not any(batch.replicas):
            return list(batch.ended)
        try:
            results = self._compute(batch)
        except Exception as error:  # of whatever kind: the engine lives on
            return self._scheduler.retry_alone(batch, error)
        deltas = self._scheduler.update(batch, results)
        self._num_steps += 1
        self._step_s += time.perf_counter() - begin
        return deltas

    def _compute(self, batch: ScheduledBatch) -> list[StepResult]:
        """Executes and samples: one entry per forward pass."""
        results: list[StepResult] = []
        cache = self._scheduler.cache_inputs(batch)
        inputs = self._model.prepare_initial_token_inputs(batch.contexts, cache)
        while True:
            begin = time.perf_counter()
            outputs = self._model.execute(inputs)
            self._model_s += time.perf_counter() - begin
            logits = outputs.next_token_logits.to_numpy()
            indices = batch.sampling_indices
            if indices != list(range(len(logits))):  # else a copy of all logits is saved
                logits = logits[indices]
            sampled = self._sampler.sample(logits, batch.sampling_rows(results))
            results.append(StepResult(sampled, self._log_probabilities(batch, inputs, outputs, sampled.tokens)))
            if len(results) == batch.num_steps:
                return results
            # Cache lengths go forward with the inputs that ran, before the next ones are made from them.
            inputs.kv_cache_inputs = increment_cache_lengths(inputs.kv_cache_inputs, inputs)
            inputs = self._model.prepare_next_token_inputs(Buffer.from_numpy(sampled.tokens), inputs)

    def _log_probabilities(
        self, batch: ScheduledBatch, inputs: Any, outputs: Any, tokens: np.ndarray[Any, np.dtype[np.int64]]
    ) -> list[LogProbabilities | None]:
        """Records of the drawn tokens, or nothing where nobody asked."""
        rows = batch.rows
        if not any(row.context.log_probabilities and row.samples for row in rows):
            return []
        model: LogProbabilityModel = self._model  # type: ignore[assignment]  # asked for by requests only
        first = np.cumsum([0, *(len(row.samples) for row in rows)])  # where each row's tokens begin
        echo = [row.context.is_prompt_echoed for row in rows]
        records: list[LogProbabilities | None] = [None] * len(tokens)
        for choice in range(max(len(row.samples) for row in rows)):  # a model tells about one token per row
            drawn = [index for index, row in enumerate(rows) if choice < len(row.samples)]
            asked = [row.context.log_probabilities if choice < len(row.samples) else 0 for row in rows]
            next_tokens = np.zeros(len(rows), dtype=np.int64)
            next_tokens[drawn] = tokens[first[drawn] + choice]
            found = model.compute_log_probabilities(
                self._session, inputs, outputs, Buffer.from_numpy(next_tokens), asked, echo
            )
            for index in drawn:
                records[int(first[index]) + choice] = found[index]
        return records
