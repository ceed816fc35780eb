"""What changes a row of logits before anything is drawn from it: biases, bans, penalties.

Each function edits one row, float32 `[V]`, in place. `apply_edits` states their order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from puna.pipelines.sampling.row import Float32Array, Int64Array, SamplingRow
from puna.pipelines.sampling_params import SamplingParams

_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_LONGEST_REPETITION: Final = 1024  # of DRY; its penalty is beyond all bounds long before


def apply_edits(line: Float32Array, row: SamplingRow) -> None:
    """All of a request's edits, in their order.

    Logit bias; tokens that are not allowed; repetition penalty; frequency and presence penalties; DRY; tokens that
    would repeat an n-gram or complete a bad word; tokens that may not come yet; tokens that the request's grammar does
    not allow. The request's own processors run before.
    """
    params = row.params
    if params.logit_bias:
        ids = np.fromiter((i for i in params.logit_bias if i < len(line)), dtype=np.int64)
        values = [params.logit_bias[i] for i in ids.tolist()]
        line[ids] += np.array(values, dtype=np.float32)
    if params.allowed_token_ids is not None:
        allowed = _known(params.allowed_token_ids, len(line))
        kept = line[allowed]
        line[:] = -np.inf
        line[allowed] = kept
    if params.banned_token_ids:
        line[_known(params.banned_token_ids, len(line))] = -np.inf
    if params.has_penalties:
        _apply_penalties(line, row)
    if params.dry_multiplier > 0:
        _apply_dry(line, row)
    if params.no_repeat_ngram_size > 0:
        line[_ngram_ends(row.tokens, params.no_repeat_ngram_size)] = -np.inf
    for word in row.bad_words:
        before = len(word) - 1
        if before == 0 or (before <= len(row.tokens) and tuple(row.tokens[-before:].tolist()) == word[:-1]):
            line[word[-1]] = -np.inf
    line[row.forbidden] = -np.inf
    if isinstance(row.allowed, np.ndarray):
        line[~row.allowed[: len(line)]] = -np.inf
    elif row.allowed is not None:  # why there is nothing
        line[:] = -np.inf


def _known(ids: Sequence[int], vocabulary: int) -> Int64Array:
    return np.array([i for i in ids if i < vocabulary], dtype=np.int64)


def _apply_penalties(line: Float32Array, row: SamplingRow) -> None:
    """Weakens tokens that were there before: prompt and output for repetition, output only for the other two."""
    params = row.params
    begin = 0 if params.penalty_window is None else max(0, len(row.tokens) - params.penalty_window)
    if params.repetition_penalty != 1:
        seen = np.unique(row.tokens[begin:])
        values = line[seen]
        penalty = np.float32(min(params.repetition_penalty, _FLOAT32_MAX))
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # of both branches one is not used
            weakened = np.where(values > 0, values / penalty, values * penalty)
        # An absurd penalty must not make an infinity of a finite logit: infinities tell of broken models.
        line[seen] = np.where(np.isfinite(values), np.clip(weakened, -_FLOAT32_MAX, _FLOAT32_MAX), values)
    if params.frequency_penalty != 0 or params.presence_penalty != 0:
        generated, counts = np.unique(row.tokens[max(begin, row.prompt_length) :], return_counts=True)
        line[generated] -= np.float32(params.frequency_penalty) * counts.astype(np.float32)
        line[generated] -= np.float32(params.presence_penalty)


def _apply_dry(line: Float32Array, row: SamplingRow) -> None:
    """Weakens tokens that would go on with a repetition: by `multiplier * base ** (length - allowed_length)`.

    Source: p-e-w, "DRY: A modern repetition penalty", text-generation-webui pull request 5677.
    """
    params = row.params
    ends, lengths = _repetitions(row.tokens, row.dry_breakers, params)
    long_enough = lengths >= params.dry_allowed_length
    following, lengths = row.tokens[ends[long_enough] + 1], lengths[long_enough]
    if not len(following):
        return
    longest = np.zeros(len(line), dtype=np.int64)
    np.maximum.at(longest, following, lengths)
    tokens = np.flatnonzero(longest)
    excess = np.minimum(longest[tokens] - params.dry_allowed_length, 500 / max(math.log(params.dry_base), 1e-3))
    penalty = np.minimum(params.dry_multiplier * params.dry_base**excess, _FLOAT32_MAX)
    values = line[tokens]
    weakened = np.clip(values.astype(np.float64) - penalty, -_FLOAT32_MAX, _FLOAT32_MAX).astype(np.float32)
    line[tokens] = np.where(np.isfinite(values), weakened, values)


def _repetitions(
    tokens: Int64Array, breakers: frozenset[int], params: SamplingParams
) -> tuple[Int64Array, Int64Array]:
    """Where the end of the tokens occurred before: the last position of each occurrence and how long it is, `[m]`."""
    last = len(tokens) - 1
    begin = 0 if params.dry_window is None else max(0, len(tokens) - params.dry_window)
    if int(tokens[last]) in breakers:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    ends = begin + np.flatnonzero(tokens[begin:last] == tokens[last])
    lengths = np.ones(len(ends), dtype=np.int64)
    alive = np.arange(len(ends))
    for length in range(1, _LONGEST_REPETITION):
        place = last - length
        if place < begin or not len(alive) or int(tokens[place]) in breakers:
            break
        alive = alive[ends[alive] - length >= begin]
        alive = alive[tokens[ends[alive] - length] == tokens[place]]
        lengths[alive] = length + 1
    return ends, lengths


def _ngram_ends(tokens: Int64Array, size: int) -> Int64Array:
    """Tokens that would make the last `size` tokens a sequence that occurred before."""
    if len(tokens) < size:
        return np.zeros(0, np.int64)
    if size == 1:
        return np.unique(tokens)
    windows = np.lib.stride_tricks.sliding_window_view(tokens, size)
    repeated = (windows[:, :-1] == tokens[len(tokens) - size + 1 :]).all(axis=1)
    return np.unique(windows[repeated, -1])
