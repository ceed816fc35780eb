"""The loop: schedule, execute, sample, update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from puna.driver import Buffer
from puna.errors import InvalidRequestError
from puna.nn.kv_cache import KVCacheInputs, increment_cache_lengths
from puna.pipelines.batch import GenerationDelta, ScheduledBatch, StepResult
from puna.pipelines.context import LogProbabilities, TextContext
from puna.pipelines.kv_cache import PagedKVCacheManager
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
        kv_manager: Owns the KV cache.
        scheduler: Owns the requests.
        sampler: Chooses tokens.
        session: The model's session, for log-probabilities.
        has_all_logits: Whether a step returns the logits of all its tokens, so that prompts can be echoed.
    """

    def __init__(
        self,
        model: StepModel,
        kv_manager: PagedKVCacheManager,
        scheduler: Scheduler,
        sampler: Sampler,
        session: Any = None,
        has_all_logits: bool = False,
    ) -> None:
        self._has_all_logits = has_all_logits
        self._model = model
        self._kv = kv_manager
        self._scheduler = scheduler
        self._sampler = sampler
        self._session = session

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return self._scheduler.has_work

    def add(self, context: TextContext) -> None:
        """Takes a request in; `step` answers it.

        Raises:
            InvalidRequestError: It asks for what is not there, or can never fit the cache.
            QueueFullError: Too many wait.
        """
        top_n = context.log_probabilities
        if top_n > MAX_TOP_N:
            raise InvalidRequestError(f"must be from 0 to {MAX_TOP_N}, got {top_n}", param="logprobs")
        if context.is_prompt_echoed and not self._has_all_logits:
            raise InvalidRequestError(
                "log-probabilities of the prompt need the logits of every token; load the model with enable_echo",
                param="echo",
            )
        self._scheduler.add(context)

    def abort(self, request_id: RequestID) -> bool:
        """Ends a request at once; False when it has ended already."""
        return self._scheduler.abort(request_id)

    def step(self) -> list[GenerationDelta]:
        """One turn of the loop.

        Returns:
            What changed, one entry per request that got tokens or ended.
        """
        batch = self._scheduler.schedule()
        if not batch.rows:
            return list(batch.ended)
        results: list[StepResult] = []
        cache = self._kv.inputs(batch.cache_rows, batch.num_steps)
        inputs = self._model.prepare_initial_token_inputs([batch.contexts], cache)
        while True:
            outputs = self._model.execute(inputs)
            logits = outputs.next_token_logits.to_numpy()
            sampled = self._sampler.sample(logits[batch.sampling_indices], batch.sampling_rows(results))
            results.append(StepResult(sampled, self._log_probabilities(batch, inputs, outputs, sampled.tokens)))
            if len(results) == batch.num_steps:
                return self._scheduler.update(batch, results)
            # Cache lengths go forward with the inputs that ran, before the next ones are made from them.
            inputs.kv_cache_inputs = increment_cache_lengths(inputs.kv_cache_inputs, inputs)
            inputs = self._model.prepare_next_token_inputs(Buffer.from_numpy(sampled.tokens), inputs)

    def _log_probabilities(
        self, batch: ScheduledBatch, inputs: Any, outputs: Any, tokens: np.ndarray[Any, np.dtype[np.int64]]
    ) -> list[LogProbabilities | None]:
        """Records of the rows that got a token, or nothing where nobody asked."""
        asked = [row.context.log_probabilities if row.samples else 0 for row in batch.rows]
        if not any(asked):
            return []
        model: LogProbabilityModel = self._model  # type: ignore[assignment]  # asked for by requests only
        next_tokens = np.zeros(len(batch.rows), dtype=np.int64)
        next_tokens[batch.sampling_indices] = tokens
        echo = [row.context.is_prompt_echoed for row in batch.rows]
        records = model.compute_log_probabilities(
            self._session, inputs, outputs, Buffer.from_numpy(next_tokens), asked, echo
        )
        return [records[index] for index in batch.sampling_indices]
