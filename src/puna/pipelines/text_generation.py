"""The loop: schedule, execute, sample, update."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from puna.driver import Buffer
from puna.nn.kv_cache import KVCacheInputs, increment_cache_lengths
from puna.pipelines.batch import GenerationDelta, LoopTimes, ScheduledBatch, SchedulerCounts, StepResult
from puna.pipelines.context import TextContext
from puna.pipelines.prompt_reading import hand_out_rows
from puna.pipelines.request import RequestID
from puna.pipelines.sampling import AllowedTokensFinder, Sampler
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


class ReadableModel(Protocol):
    """What the loop asks of a model when somebody looks at rows of prompts."""

    def execute_for_readers(self, model_inputs: Any, needs_logits: bool, layers: tuple[int, ...]) -> Any:
        """As `execute`; `logits` of all rows and `hidden_states` of the layers, side by side, where asked for."""
        ...


class TextGenerationPipeline:
    """Turns requests into tokens, one step at a time.

    Args:
        model: Computes logits.
        scheduler: Owns the requests and their parts of the KV cache.
        sampler: Chooses tokens.
    """

    def __init__(self, model: StepModel, scheduler: Scheduler, sampler: Sampler) -> None:
        self._model = model
        self._scheduler = scheduler
        self._sampler = sampler
        self._finder = AllowedTokensFinder()
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
            grammars = self._finder.find(batch.samples, lambda: batch.drawn(results))  # while the model computes
            outputs = self._execute(batch, inputs)
            self._model_s += time.perf_counter() - begin
            logits = outputs.next_token_logits.to_numpy()
            indices = batch.sampling_indices
            if indices != list(range(len(logits))):  # else a copy of all logits is saved
                logits = logits[indices]
            sampled = self._sampler.sample(logits, batch.sampling_rows(results, grammars and grammars()))
            results.append(StepResult(sampled))
            if len(results) == batch.num_steps:
                return results
            # Cache lengths go forward with the inputs that ran, before the next ones are made from them.
            inputs.kv_cache_inputs = increment_cache_lengths(inputs.kv_cache_inputs, inputs)
            inputs = self._model.prepare_next_token_inputs(Buffer.from_numpy(sampled.tokens), inputs)

    def _execute(self, batch: ScheduledBatch, inputs: Any) -> Any:
        readers = batch.readers
        if not readers:
            return self._model.execute(inputs)
        model: ReadableModel = self._model  # type: ignore[assignment]  # asked for by requests only
        needs_logits = any(reader.needs_logits for reader in readers)
        layers = tuple(sorted({layer for reader in readers for layer in reader.layers}))
        outputs = model.execute_for_readers(inputs, needs_logits, layers)
        hand_out_rows(batch, outputs, layers)
        return outputs
