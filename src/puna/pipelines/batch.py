"""The values that go round the loop: what the scheduler decided, what a pass computed, what changed for a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from puna.errors import PunaError
from puna.pipelines.context import LogProbabilities, TextContext
from puna.pipelines.kv_cache import BlockCounts, CacheRow, StoreCounts
from puna.pipelines.prompt_rows import PromptReader
from puna.pipelines.request import RequestID
from puna.pipelines.sampling import AllowedTokens, SampledTokens, SamplingRow


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class ScheduledRow(NamedTuple):
    """One request's part in a step: its active tokens, all of them.

    Attributes:
        context: The request.
        cache: Its part in the tables of the KV cache.
        samples: Who gets a token from its last row of logits: nobody where the prompt goes on behind the step, the
            request, or the request and its forks where a prompt is continued in several ways from here.
    """

    context: TextContext
    cache: CacheRow
    samples: tuple[TextContext, ...]


class GenerationDelta(NamedTuple):
    """What a step changed for one request.

    Attributes:
        request_id: The request.
        tokens: Tokens that it got, the end-of-sequence token included.
        finish_reason: Why it ended, or None while it goes on.
        stop_reason: The token id or the word that ended it, where it was not the end-of-sequence token.
        error: What went wrong, when it ended for that.
        log_probabilities: One record per token where they were asked for, else empty.
        num_cached_tokens: Prompt tokens that were found in the cache at admission.
        choice: Which of the request's continuations this is.
    """

    request_id: RequestID
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: PunaError | None = None
    log_probabilities: tuple[LogProbabilities, ...] = ()
    num_cached_tokens: int = 0
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """A decision: who takes part in the next step.

    Attributes:
        replicas: The requests of each replica, in the order of tokens, tables and outputs.
        num_steps: Forward passes before the scheduler decides again.
        ended: Requests that ended before the step.
    """

    replicas: tuple[tuple[ScheduledRow, ...], ...] = ()
    num_steps: int = 1
    ended: tuple[GenerationDelta, ...] = ()

    @property
    def rows(self) -> list[ScheduledRow]:
        """All requests, replica by replica."""
        return [row for replica in self.replicas for row in replica]

    @property
    def contexts(self) -> list[list[TextContext]]:
        """The contexts of each replica."""
        return [[row.context for row in replica] for replica in self.replicas]

    @property
    def readers(self) -> list[PromptReader]:
        """Who looks at rows of this step."""
        return [
            row.context.reader
            for replica in self.replicas
            for row in replica
            if row.context.reader is not None and row.context.needs_prompt_rows
        ]

    @property
    def sampling_indices(self) -> list[int]:
        """The rows that tokens are drawn from; one from which several are drawn is there several times."""
        return [index for index, row in enumerate(self.rows) for _ in row.samples]

    @property
    def samples(self) -> list[TextContext]:
        """Who gets a token, in the order of `sampling_indices`."""
        return [context for row in self.rows for context in row.samples]

    def sampling_rows(
        self, earlier: Sequence[StepResult], allowed: Sequence[AllowedTokens] | None = None
    ) -> list[SamplingRow]:
        """What the sampler needs to know for each drawn token.

        Args:
            earlier: The turn's earlier passes.
            allowed: What the grammars of `samples` allow; None: none of them has one.
        """
        contexts = self.samples
        if allowed is not None:
            drawn = self.drawn(earlier)
            return [SamplingRow.of(*values) for values in zip(contexts, drawn, allowed, strict=True)]
        if not earlier:
            return [SamplingRow.of(context) for context in contexts]
        return [SamplingRow.of(*values) for values in zip(contexts, self.drawn(earlier), strict=True)]

    def drawn(self, earlier: Sequence[StepResult]) -> npt.NDArray[np.int64]:
        """What the turn's earlier passes drew for each of `samples`, int64 `[B, n]`."""
        if not earlier:
            return np.zeros((len(self.samples), 0), dtype=np.int64)
        return np.stack([result.sampled.tokens for result in earlier], axis=1)


@dataclass(frozen=True, slots=True)
class LoopTimes:
    """How long the loop took so far.

    Attributes:
        num_steps: Steps that computed something.
        step_s: Seconds in them.
        model_s: Seconds of these in which the model computed.
    """

    num_steps: int = 0
    step_s: float = 0.0
    model_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SchedulerCounts:
    """What the scheduler did so far, and what is under way.

    Attributes:
        num_waiting: Requests that wait.
        num_running: Requests that hold pages, over all replicas; continuations of one prompt count each.
        blocks: Pages, over all replicas.
        num_prompt_tokens: Tokens of the prompts of all requests that began.
        num_cached_tokens: How many of these were found in the prefix cache.
        num_generated_tokens: Tokens that were drawn and given out.
        num_preemptions: How often a request gave its pages back to let another one go on.
        num_retries: How often a request was tried again after a failed step.
        store: What the store of blocks on disk did, or None.
    """

    num_waiting: int
    num_running: int
    blocks: BlockCounts
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    num_preemptions: int
    num_retries: int
    store: StoreCounts | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one forward pass gave, in the order of `ScheduledBatch.samples`.

    Attributes:
        sampled: The tokens, and log-probabilities where they were asked for.
    """

    sampled: SampledTokens
