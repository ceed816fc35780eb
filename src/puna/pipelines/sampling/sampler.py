"""`Sampler`: chooses the next token of each row, and reports log-probabilities where they were asked for.

All rows of a step go through NumPy together, yet no row can tell which others are there: every operation is element by
element or along one row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from puna.errors import InvalidRequestError, PunaError
from puna.pipelines.context import LogProbabilities
from puna.pipelines.lib.log_probabilities import token_log_probabilities
from puna.pipelines.sampling.draw import Distribution, draw
from puna.pipelines.sampling.edits import apply_edits
from puna.pipelines.sampling.row import Float32Array, Int64Array, SamplingRow


class NonFiniteLogitsError(PunaError, RuntimeError):
    """The model answered a request with something that is not a number; the request ends, others go on."""

    def __init__(self, position: int) -> None:
        self.position = position
        super().__init__(
            f"the model's logits for position {position} are not finite; its weights or its arithmetic are broken, "
            "and any text would be garbage"
        )


class NothingAllowedError(InvalidRequestError):
    """A request's own rules leave no token that may come next; it ends, others go on."""

    def __init__(self, position: int) -> None:
        self.position = position
        super().__init__(
            f"no token may stand at position {position}: allowed_token_ids, banned_token_ids, bad_words, logit_bias, "
            "no_repeat_ngram_size, min_tokens, a logits processor or structured_outputs forbid all of them"
        )


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What was drawn.

    Attributes:
        tokens: int64 `[B]`; 0 where there is an error.
        errors: For each row None, or why it has no token.
        log_probabilities: For each row a record of one position, or None where nobody asked; empty: nobody did.
    """

    tokens: Int64Array
    errors: tuple[PunaError | None, ...]
    log_probabilities: tuple[LogProbabilities | None, ...] = ()


class Sampler:
    """Chooses the next token of each row. It keeps no state: a row's randomness is in its seed and position."""

    def sample(self, logits: Float32Array, rows: Sequence[SamplingRow]) -> SampledTokens:
        """Draws one token per row.

        Args:
            logits: float32 `[B, V]`, as the model gave them; not changed.
            rows: One entry per row of `logits`.
        """
        assert logits.shape[0] == len(rows), f"{logits.shape[0]} rows of logits for {len(rows)} requests"
        if not rows:
            return SampledTokens(np.zeros(0, np.int64), ())
        raw = _without_padding(logits, rows)
        edited = _edited(logits, raw, rows)
        tokens = edited.argmax(axis=1).astype(np.int64)
        largest = edited[np.arange(len(rows)), tokens]  # of a row with NaN it is NaN: argmax stops at it
        errors = _errors(raw, edited, largest, rows)
        drawn = [i for i, row in enumerate(rows) if not row.params.is_greedy and errors[i] is None]
        distributions: list[Distribution | None] = [None] * len(rows)
        if drawn:
            chosen = [rows[i] for i in drawn]
            wanted = [row.params.reports_processed for row in chosen]
            part = np.ascontiguousarray(edited if len(drawn) == len(rows) else edited[drawn])
            tokens[drawn], found = draw(part, largest[drawn], chosen, wanted)
            for index, distribution in zip(drawn, found, strict=True):
                distributions[index] = distribution
        if any(errors):
            tokens[[error is not None for error in errors]] = 0
        records: tuple[LogProbabilities | None, ...] = ()
        if any(row.params.logprobs is not None for row in rows):
            records = tuple(
                _record(logits[i], edited[i], distributions[i], int(tokens[i]), row) if errors[i] is None else None
                for i, row in enumerate(rows)
            )
        return SampledTokens(tokens, errors, records)


def _without_padding(logits: Float32Array, rows: Sequence[SamplingRow]) -> Float32Array:
    """The columns that are tokens of the tokenizer; all requests of a model have the same."""
    sizes = {row.vocab_size or logits.shape[1] for row in rows}
    assert len(sizes) == 1, f"requests of one step with vocabularies of {sorted(sizes)} tokens"
    return logits[:, : min(sizes.pop(), logits.shape[1])]


def _edited(logits: Float32Array, raw: Float32Array, rows: Sequence[SamplingRow]) -> Float32Array:
    """The logits after every request's own edits; the given array if there are none."""
    touched = [index for index, row in enumerate(rows) if row.edits_logits]
    if not touched:
        return raw
    edited = raw.copy()
    for index in touched:
        row = rows[index]
        if row.processors:
            whole = logits[index : index + 1].copy()  # processors know the model's width, padding included
            for process in row.processors:
                process(whole)
            edited[index] = whole[0, : edited.shape[1]]
        apply_edits(edited[index], row)
    return edited


def _errors(
    raw: Float32Array, edited: Float32Array, largest: Float32Array, rows: Sequence[SamplingRow]
) -> tuple[PunaError | None, ...]:
    """Why rows have no token. Minus infinity is fine where a request's edits forbid tokens; models never give it."""
    if edited is raw and math.isfinite(raw.min()) and math.isfinite(largest.max()):
        return (None,) * len(rows)
    lowest, highest = raw.min(axis=1), raw.max(axis=1)
    if np.isfinite(largest).all() and np.isfinite(lowest).all() and np.isfinite(highest).all():
        return (None,) * len(rows)
    is_broken = ~(np.isfinite(lowest) & np.isfinite(highest)) | np.isnan(largest) | (largest == np.inf)
    return tuple(
        NonFiniteLogitsError(row.position)
        if is_broken[index]
        else (_why_nothing(row) if largest[index] == -np.inf else None)
        for index, row in enumerate(rows)
    )


def _why_nothing(row: SamplingRow) -> PunaError:
    return row.allowed if isinstance(row.allowed, PunaError) else NothingAllowedError(row.position)


def _record(
    logits: Float32Array, edited: Float32Array, distribution: Distribution | None, token: int, row: SamplingRow
) -> LogProbabilities | None:
    params = row.params
    if params.logprobs is None:
        return None
    scores: npt.NDArray[np.floating] = logits  # whole, as the model gave it
    if params.logprobs_mode == "processed":
        scores = edited
        if distribution is not None:
            scores = np.full(len(edited), -np.inf)
            with np.errstate(divide="ignore"):  # of tokens that are forbidden
                scores[distribution.ids] = np.log(distribution.weights)
    ids = np.array([token], dtype=np.int64)
    return token_log_probabilities(scores[None, :], ids, params.logprobs, params.logprob_token_ids or ())
