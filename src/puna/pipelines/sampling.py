"""From logits to tokens: penalties, filters, and a draw whose randomness belongs to one request alone.

All rows of a step go through NumPy together, yet no row can tell which others are there: every operation is element by
element or along one row. The random number of a draw is a function of (seed, choice, position), made by the
counter-based generator Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), so
neither batch mates nor a preemption change it.

Order, per row: the request's own logits processors; repetition penalty; frequency and presence penalties; tokens that
may not come yet (`min_new_tokens`); temperature; top-k; min-p; top-p; draw. `top_p` is measured against what top-k
and min-p left. Among equal logits the lower token id counts as the likelier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from puna.errors import PunaError
from puna.pipelines.request import SamplingParams

Float32Array: TypeAlias = npt.NDArray[np.float32]
Float64Array: TypeAlias = npt.NDArray[np.float64]
Int64Array: TypeAlias = npt.NDArray[np.int64]
_UInt64Array: TypeAlias = npt.NDArray[np.uint64]

_CANDIDATES: Final = 1024
_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_LOW: Final = np.uint64(0xFFFFFFFF)
_SHIFT: Final = np.uint64(32)


class NonFiniteLogitsError(PunaError, RuntimeError):
    """The model answered a request with something that is not a number; the request ends, others go on."""

    def __init__(self, position: int) -> None:
        self.position = position
        super().__init__(
            f"the model's logits for position {position} are not finite; its weights or its arithmetic are broken, "
            "and any text would be garbage"
        )


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """One request's part in a draw.

    Attributes:
        params: How it wants its tokens.
        tokens: Prompt and generated tokens, int64 `[n]`; the drawn token's position is `n`.
        prompt_length: How many of them are the prompt.
        forbidden: Tokens that may not be drawn now, int64 `[m]`.
        vocab_size: Ids from here on are padding of the output matrix and are never drawn; 0: there are none.
        choice: Which of several continuations of one prompt this is.
        processors: The request's own functions over its logits row (float32 `[1, V]`), which they edit in place.
    """

    params: SamplingParams
    tokens: Int64Array
    prompt_length: int
    forbidden: Int64Array
    vocab_size: int = 0
    choice: int = 0
    processors: tuple[Callable[[Float32Array], None], ...] = ()

    @property
    def position(self) -> int:
        """Where the drawn token will stand."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What was drawn.

    Attributes:
        tokens: int64 `[B]`; 0 where there is an error.
        errors: For each row None, or why it has no token.
    """

    tokens: Int64Array
    errors: tuple[PunaError | None, ...]


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
        edited = _apply_row_edits(logits, rows)
        # Extremes hand NaN on. Where a row was edited, minus infinity forbids a token; the model itself never gives it.
        finite = np.isfinite(logits.max(axis=1)) & np.isfinite(logits.min(axis=1)) & np.isfinite(edited.max(axis=1))
        tokens = edited.argmax(axis=1).astype(np.int64)
        drawn = [index for index, row in enumerate(rows) if not row.params.is_greedy and finite[index]]
        if drawn:
            chosen = [rows[index] for index in drawn]
            tokens[drawn] = _draw(edited[drawn], [row.params for row in chosen], uniform(chosen))
        tokens[~finite] = 0
        errors = tuple(None if ok else NonFiniteLogitsError(row.position) for ok, row in zip(finite, rows, strict=True))
        return SampledTokens(tokens, errors)


def uniform(rows: Sequence[SamplingRow]) -> Float64Array:
    """One number in [0, 1) per row, float64 `[B]` with 53 random bits, from (seed, choice, position) alone."""
    seeds = np.array([row.params.seed for row in rows], dtype=np.uint64)
    positions = np.array([row.position for row in rows], dtype=np.uint64)
    choices = np.array([row.choice for row in rows], dtype=np.uint64)
    zeros = np.zeros(len(rows), dtype=np.uint64)
    words = philox_4x32((positions & _LOW, positions >> _SHIFT, choices & _LOW, zeros), (seeds & _LOW, seeds >> _SHIFT))
    high, low = words[0] >> np.uint64(5), words[1] >> np.uint64(6)
    return (high.astype(np.float64) * 2.0**26 + low.astype(np.float64)) * 2.0**-53


def philox_4x32(
    counter: tuple[_UInt64Array, _UInt64Array, _UInt64Array, _UInt64Array], key: tuple[_UInt64Array, _UInt64Array]
) -> tuple[_UInt64Array, _UInt64Array, _UInt64Array, _UInt64Array]:
    """Ten rounds of Philox on 32-bit words that are held in uint64 arrays `[B]`."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _round in range(10):
        p0 = c0 * np.uint64(0xD2511F53)
        p1 = c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW
        k0 = (k0 + np.uint64(0x9E3779B9)) & _LOW
        k1 = (k1 + np.uint64(0xBB67AE85)) & _LOW
    return c0, c1, c2, c3


def _apply_row_edits(logits: Float32Array, rows: Sequence[SamplingRow]) -> Float32Array:
    """Processors, penalties and forbidden tokens; a copy if there are any."""
    vocabulary = logits.shape[1]
    touched = [index for index, row in enumerate(rows) if _has_edits(row) or 0 < row.vocab_size < vocabulary]
    if not touched:
        return logits
    edited = logits.copy()
    for index in touched:
        row, line = rows[index], edited[index]
        for process in row.processors:
            process(edited[index : index + 1])
        _apply_penalties(line, row)
        line[row.forbidden] = -np.inf
        if row.vocab_size:
            line[row.vocab_size :] = -np.inf
    return edited


def _has_edits(row: SamplingRow) -> bool:
    params = row.params
    return bool(
        row.processors
        or len(row.forbidden)
        or params.repetition_penalty != 1
        or params.frequency_penalty != 0
        or params.presence_penalty != 0
    )


def _apply_penalties(line: Float32Array, row: SamplingRow) -> None:
    """Weakens tokens that were there before: prompt and output for repetition, output only for the other two."""
    params = row.params
    if params.repetition_penalty != 1:
        seen = np.unique(row.tokens)
        values = line[seen]
        penalty = np.float32(min(params.repetition_penalty, _FLOAT32_MAX))
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # of both branches one is not used
            weakened = np.where(values > 0, values / penalty, values * penalty)
        # An absurd penalty must not make an infinity of a finite logit: infinities tell of broken models.
        line[seen] = np.where(np.isfinite(values), np.clip(weakened, -_FLOAT32_MAX, _FLOAT32_MAX), values)
    if params.frequency_penalty != 0 or params.presence_penalty != 0:
        generated, counts = np.unique(row.tokens[row.prompt_length :], return_counts=True)
        line[generated] -= np.float32(params.frequency_penalty) * counts.astype(np.float32)
        line[generated] -= np.float32(params.presence_penalty)


def _draw(logits: Float32Array, params: Sequence[SamplingParams], uniforms: Float64Array) -> Int64Array:
    """Filters and draws, for rows that are not greedy.

    In the order of falling probability, every filter keeps a beginning of the row; so all of them together are one
    count.
    """
    vocabulary = logits.shape[1]
    temperature = np.array([item.temperature for item in params])[:, None]
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to minus infinity, as it should
        scaled = (logits.astype(np.float64) - logits.max(axis=1, keepdims=True)) / temperature
    weights = np.exp(scaled)
    if any(item.top_k > 0 or item.top_p < 1 or item.min_p > 0 for item in params):
        threshold, counts = _cut(scaled, weights, params)
        above = scaled > threshold[:, None]
        ties = scaled == threshold[:, None]
        ties &= np.cumsum(ties, axis=1) <= (counts - above.sum(axis=1))[:, None]
        weights[~(above | ties)] = 0.0
    cumulated = np.cumsum(weights, axis=1)
    target = uniforms[:, None] * cumulated[:, -1:]
    # u < 1, yet u * total can round up to total: the last token with weight is then the one.
    last_with_weight = vocabulary - 1 - (weights[:, ::-1] > 0).argmax(axis=1)
    return np.asarray(np.minimum((cumulated <= target).sum(axis=1), last_with_weight), dtype=np.int64)


def _cut(
    scaled: Float64Array, weights: Float64Array, params: Sequence[SamplingParams]
) -> tuple[Float64Array, Int64Array]:
    """Where the filters cut each row: the least logit that stays, float64 `[B]`, and how many tokens stay, int64 `[B]`.

    The likeliest tokens are nearly always enough to tell; a row for which they are not is sorted whole. Which of the
    two happens depends on the row alone.
    """
    num_rows, vocabulary = scaled.shape
    threshold, counts = np.empty(num_rows), np.empty(num_rows, dtype=np.int64)
    open_rows = np.arange(num_rows)
    for width in (min(_CANDIDATES, vocabulary), vocabulary):
        chosen = [params[int(row)] for row in open_rows]
        lowest, kept, decided = _cut_within(scaled[open_rows], weights[open_rows], chosen, width)
        threshold[open_rows[decided]], counts[open_rows[decided]] = lowest[decided], kept[decided]
        open_rows = open_rows[~decided]
        if not open_rows.size:
            break
    return threshold, counts


def _cut_within(
    scaled: Float64Array, weights: Float64Array, params: Sequence[SamplingParams], width: int
) -> tuple[Float64Array, Int64Array, npt.NDArray[np.bool_]]:
    """As `_cut`, from the `width` likeliest tokens of each row; the third array tells for which rows they are enough.

    Args:
        scaled: Logits over temperature less their maximum, float64 `[B, V]`.
        weights: Their exponentials: the largest is 1.
        params: One entry per row.
        width: How many tokens are looked at.
    """
    num_rows, vocabulary = scaled.shape
    ordered = -np.sort(np.partition(-scaled, width - 1, axis=1)[:, :width], axis=1)
    top_k = np.array([item.top_k if 0 < item.top_k < vocabulary else vocabulary for item in params], dtype=np.int64)
    min_p = np.array([item.min_p for item in params])[:, None]
    top_p = np.array([item.top_p for item in params])
    counts = np.minimum(top_k, (weights >= min_p).sum(axis=1))
    rows = np.arange(num_rows)
    cumulated = np.cumsum(np.exp(ordered), axis=1)
    all_stay = counts == vocabulary
    known = all_stay | (counts <= width)
    total = np.where(all_stay, weights.sum(axis=1), cumulated[rows, np.minimum(counts, width) - 1])
    enough = (cumulated < (top_p * total)[:, None]).sum(axis=1) + 1
    counts = np.where(top_p < 1, np.minimum(counts, enough), counts)
    lowest = np.where(counts == vocabulary, -np.inf, ordered[rows, np.minimum(counts, width) - 1])
    return lowest, counts, known & ((counts <= width) | (counts == vocabulary))
