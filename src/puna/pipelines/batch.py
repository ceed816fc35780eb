"""The values that go round the loop: what the scheduler decided, what a pass computed, what changed for a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from puna.errors import PunaError
from puna.pipelines.context import LogProbabilities, TextContext
from puna.pipelines.kv_cache import CacheRow
from puna.pipelines.request import LogitsProcessor, RequestID
from puna.pipelines.sampling import Float32Array, SampledTokens, SamplingRow


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class ScheduledRow:
    """One request's part in a step: its active tokens, all of them.

    Attributes:
        context: The request.
        cache: Its part in the tables of the KV cache.
        samples: Whether the step reads its last token, so that a new one follows.
    """

    context: TextContext
    cache: CacheRow
    samples: bool


@dataclass(frozen=True, slots=True)
class GenerationDelta:
    """What a step changed for one request.

    Attributes:
        request_id: The request.
        tokens: Tokens that it got, the end-of-sequence token included.
        finish_reason: Why it ended, or None while it goes on.
        error: What went wrong, when it ended for that.
        log_probabilities: One record per token where they were asked for, else empty.
        num_cached_tokens: Prompt tokens that were found in the cache at admission.
    """

    request_id: RequestID
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    error: PunaError | None = None
    log_probabilities: tuple[LogProbabilities, ...] = ()
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """A decision: who takes part in the next step.

    Attributes:
        rows: The requests, in the order of tokens, tables and outputs.
        num_steps: Forward passes before the scheduler decides again.
        ended: Requests that ended because they cannot be served.
    """

    rows: tuple[ScheduledRow, ...] = ()
    num_steps: int = 1
    ended: tuple[GenerationDelta, ...] = ()

    @property
    def contexts(self) -> list[TextContext]:
        """The requests' contexts."""
        return [row.context for row in self.rows]

    @property
    def cache_rows(self) -> list[CacheRow]:
        """What the KV manager makes the step's tables from."""
        return [row.cache for row in self.rows]

    @property
    def sampling_indices(self) -> list[int]:
        """The rows that get a token."""
        return [index for index, row in enumerate(self.rows) if row.samples]

    def sampling_rows(self, earlier: Sequence[StepResult]) -> list[SamplingRow]:
        """What the sampler needs to know of the rows that get a token, after the turn's `earlier` passes."""
        rows = []
        for position, index in enumerate(self.sampling_indices):
            drawn = [int(result.sampled.tokens[position]) for result in earlier]
            rows.append(_sampling_row(self.rows[index].context, drawn))
        return rows


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one forward pass gave to the rows that got a token, in their order.

    Attributes:
        sampled: The tokens.
        log_probabilities: One entry per row, or empty where nobody asked.
    """

    sampled: SampledTokens
    log_probabilities: Sequence[LogProbabilities | None] = ()


def _sampling_row(context: TextContext, drawn: Sequence[int]) -> SamplingRow:
    tokens = context.tokens.all
    params = context.sampling_params
    return SamplingRow(
        params=params,
        tokens=np.concatenate([tokens, np.array(drawn, dtype=np.int64)]) if drawn else tokens,
        prompt_length=context.admission_length,
        forbidden=context.get_min_token_logit_mask(len(drawn) + 1)[-1],
        vocab_size=context.vocab_size,
        processors=tuple(_bound(process, context) for process in params.logits_processors or ()),
    )


def _bound(process: LogitsProcessor, context: TextContext) -> Callable[[Float32Array], None]:
    return lambda logits: process(logits, context)
