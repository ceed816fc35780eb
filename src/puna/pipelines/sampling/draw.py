"""Filters and the draw, for all rows of a step together.

A row is looked at through its likeliest tokens, in falling order; nearly always a few hundred are enough to tell what
the filters keep. A row for which they are not is looked at whole. Which of the two happens depends on the row alone,
and so does every sum: sums over the likeliest tokens are running sums, which zeros behind their end do not change.

The draw goes through the kept tokens in the order of their ids: it takes the first one at which the running sum of the
weights exceeds u times their total.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from puna.pipelines.filter_values import FilterValues
from puna.pipelines.sampling.random_numbers import uniforms
from puna.pipelines.sampling.row import Float32Array, Int64Array, SamplingRow

Float64Array: TypeAlias = npt.NDArray[np.float64]
_BoolArray: TypeAlias = npt.NDArray[np.bool_]

_WIDTHS: Final = (256, 8192)  # how many candidates are looked at before all tokens are
_SMALLEST: Final = np.float32(1e-30)  # a temperature below sends all but the best to minus infinity all the same
_GROUP: Final = 64  # logits whose maximum stands for them in the search for candidates


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a token was drawn from.

    Attributes:
        ids: The tokens that the filters kept, int64 `[m]`, ascending.
        weights: Their probabilities up to a common factor, float64 `[m]`.
    """

    ids: Int64Array
    weights: Float64Array


@dataclass(frozen=True, slots=True)
class _Choice:
    """Rows that were looked at: the drawn tokens, and for those that asked what they were drawn from."""

    tokens: Int64Array
    is_known: _BoolArray
    distributions: list[Distribution | None]


def draw(
    logits: Float32Array, best: Float32Array, rows: Sequence[SamplingRow], wanted: Sequence[bool]
) -> tuple[Int64Array, list[Distribution | None]]:
    """Draws a token for each row.

    Args:
        logits: float32 `[B, V]`, contiguous, edited; minus infinity forbids a token, one of each row is allowed.
        best: float32 `[B]`: the largest logit of each row.
        rows: `[B]`; none of them is greedy.
        wanted: `[B]`: whether the row's distribution is given back.
    """
    tokens = np.zeros(len(rows), dtype=np.int64)
    distributions: list[Distribution | None] = [None] * len(rows)
    is_filtered = np.array([row.params.has_filters for row in rows])
    members = np.flatnonzero(~is_filtered)
    for width in (None, *_WIDTHS, logits.shape[1]):
        if members.size:
            chosen = members.tolist()
            part = logits if members.size == len(rows) else logits[members]
            batch = _Rows(part, best[members], [rows[i] for i in chosen], [wanted[i] for i in chosen])
            choice = batch.draw_unfiltered() if width is None else batch.draw_filtered(width)
            for place, member in enumerate(chosen):
                if choice.is_known[place]:
                    tokens[member], distributions[member] = choice.tokens[place], choice.distributions[place]
            members = members[~choice.is_known]
        members = np.flatnonzero(is_filtered) if width is None else members
    return tokens, distributions


class _Rows:
    """Rows that go through the same path together: logits float32 `[B, V]`, contiguous; parameters float64 `[B, 1]`."""

    def __init__(
        self, logits: Float32Array, best: Float32Array, rows: Sequence[SamplingRow], wanted: Sequence[bool]
    ) -> None:
        self.logits = logits
        self.rows = rows
        self.wanted = wanted
        self.best = best
        values = np.array([row.params.filter_values for row in rows], dtype=np.float64)
        self.columns: dict[str, Float64Array] = dict(zip(FilterValues._fields, values.T[:, :, None], strict=True))
        self.first, self.second = uniforms(
            [row.seed for row in rows], [row.choice for row in rows], [row.position for row in rows]
        )
        self._scratch = np.empty(logits.shape[1], dtype=np.float32)

    def draw_unfiltered(self) -> _Choice:
        """Every token may be drawn."""
        tokens = np.zeros(len(self.rows), dtype=np.int64)
        distributions: list[Distribution | None] = []
        for index, line in enumerate(self.logits):  # row by row: what is made of a row fits the cache
            tokens[index] = _pick_by_groups(self.weights_of(index), float(self.first[index]))
            distribution = None
            if self.wanted[index]:
                weights = _weights(line, self.best[index], self.columns["temperature"][index, 0])
                distribution = Distribution(np.arange(len(line)), weights)
            distributions.append(distribution)
        return _Choice(tokens, np.ones(len(self.rows), dtype=np.bool_), distributions)

    def draw_filtered(self, width: int) -> _Choice:
        """The row's filters decide, over its `width` likeliest tokens or some more, if these are enough."""
        ids, values, counts = self._candidates(width)
        order = np.argsort(-values, axis=1, kind="stable")  # of equal logits the lower id comes first
        view = _View(self, np.take_along_axis(values, order, axis=1), counts)
        view.apply_filters()
        weights = np.zeros_like(view.weights)
        np.put_along_axis(weights, order, np.where(view.kept, view.weights, 0.0), axis=1)
        places = _pick(weights, self.first)
        tokens = np.take_along_axis(ids, places[:, None], axis=1)[:, 0]
        chosen = np.take_along_axis(weights, places[:, None], axis=1)[:, 0]
        distributions: list[Distribution | None] = []
        for index, row in enumerate(self.rows):
            kept = weights[index] > 0
            distributions.append(
                Distribution(ids[index][kept], weights[index][kept]) if self.wanted[index] else None
            )
            if row.params.mirostat and view.is_closed[index]:
                row.note_surprise(float(-np.log2(chosen[index] / view.total_of(index))))
        return _Choice(tokens, view.is_closed, distributions)

    def weights_of(self, index: int) -> Float32Array:
        """`exp((logit - largest) / temperature)` of one row, float32 `[V]`, until the next call: the largest is 1."""
        scaled: Float32Array = np.subtract(self.logits[index], self.best[index], out=self._scratch)
        with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to minus infinity, as it should
            scaled /= max(np.float32(self.columns["temperature"][index, 0]), _SMALLEST)
        np.exp(scaled, out=scaled)
        return scaled

    def _candidates(self, width: int) -> tuple[Int64Array, Float32Array, Int64Array]:
        """The `width` likeliest tokens of each row, or top-k ones where that is a number, and some more.

        Returns:
            ids int64 `[B, W]`, ascending; logits float32 `[B, W]`, minus infinity behind the last; counts int64 `[B]`.
        """
        num_rows, vocabulary = self.logits.shape
        if width >= vocabulary:
            ids = np.broadcast_to(np.arange(vocabulary), self.logits.shape)
            return ids, self.logits, np.full(num_rows, vocabulary)
        if width * _GROUP <= vocabulary:
            # The k-th largest of the maxima of groups is a bound that at least k tokens reach.
            groups = vocabulary // _GROUP
            even = self.logits[:, : groups * _GROUP].reshape(num_rows, _GROUP, groups).max(axis=1)
            maxima = np.sort(np.concatenate([even, self.logits[:, groups * _GROUP :]], axis=1), axis=1)
            k = self.columns["top_k"][:, 0].astype(np.int64)
            place = maxima.shape[1] - np.minimum(np.where(k > 0, k, width), maxima.shape[1])
            threshold = maxima[np.arange(num_rows), place]
        else:
            threshold = np.partition(self.logits, vocabulary - width, axis=1)[:, vocabulary - width]
        row, token = np.divmod(_places_of(self.logits >= threshold[:, None]), vocabulary)
        counts = np.bincount(row, minlength=num_rows)
        place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        ids = np.zeros((num_rows, int(counts.max())), dtype=np.int64)
        values = np.full(ids.shape, -np.inf, dtype=np.float32)
        ids[row, place] = token
        values[row, place] = self.logits[row, token]
        return ids, values, counts


class _View:
    """Rows through their likeliest tokens, likeliest first, and which of these the filters keep.

    Attributes:
        weights: float64 `[B, W]`, 0 behind a row's last candidate.
        kept: bool `[B, W]`.
        is_closed: bool `[B]`: whether no token beyond the candidates can be kept any more.
    """

    def __init__(self, rows: _Rows, values: Float32Array, counts: Int64Array) -> None:
        self._rows = rows
        self._values = values
        self.weights = _weights(values, rows.best[:, None], rows.columns["temperature"])
        self._place = np.arange(values.shape[1])[None, :]
        self._counts = counts[:, None]
        self._vocabulary = rows.logits.shape[1]
        self.kept = self._place < self._counts
        self.is_closed = counts == self._vocabulary
        self._needs_all = np.zeros(len(counts), dtype=np.bool_)
        self._totals = np.full(len(counts), np.nan)

    def total_of(self, index: int) -> float:
        """The weight of all tokens of a row, before any filter."""
        if np.isnan(self._totals[index]):
            self._totals[index] = self._rows.weights_of(index).sum(dtype=np.float64)
        return float(self._totals[index])

    def apply_filters(self) -> None:
        """Top-n-sigma, top-k, typical-p, min-p, top-p, XTC; or mirostat."""
        self._apply_top_n_sigma()
        self._apply_top_k()
        self._apply_typical_p()
        self._apply_min_p()
        self._apply_top_p()
        self._apply_xtc()
        self._apply_mirostat()
        self.is_closed &= ~self._needs_all

    def _apply_top_n_sigma(self) -> None:
        n = self._rows.columns["top_n_sigma"][:, 0]
        for index in np.flatnonzero(n > 0).tolist():
            line = self._rows.logits[index]
            allowed = line if np.isfinite(line.min()) else line[np.isfinite(line)]
            sigma = float(allowed.astype(np.float64).std())
            self._keep_only(index, self._values[index] >= float(self._rows.best[index]) - n[index] * sigma)

    def _apply_top_k(self) -> None:
        limits = self._top_k_limits()
        self.kept &= self._place < limits
        self.is_closed |= (limits <= self._counts)[:, 0]

    def _top_k_limits(self) -> Float64Array:
        """How many tokens top-k leaves of each row, float64 `[B, 1]`: infinity where it leaves all."""
        k = self._rows.columns["top_k"]
        return np.where((k > 0) & (k < self._vocabulary), k, np.inf)

    def _apply_typical_p(self) -> None:
        """Keeps the tokens whose surprise is nearest to the entropy (Meister et al., "Locally typical sampling", 2022).

        Entropy and surprise are those of what is left, so the candidates must hold all of it.
        """
        typical = self._rows.columns["typical_p"][:, 0]
        for index in np.flatnonzero((typical < 1) & self.is_closed):
            kept = np.flatnonzero(self.kept[index] & (self.weights[index] > 0))
            weights = self.weights[index, kept]
            probabilities = weights / np.cumsum(weights)[-1]
            surprise = -np.log(probabilities)
            distance = np.abs(surprise - np.cumsum(probabilities * surprise)[-1])
            order = np.argsort(distance, kind="stable")
            before = np.cumsum(probabilities[order]) - probabilities[order]
            mask = np.zeros_like(self.kept[index])
            mask[kept[order[before < typical[index]]]] = True
            self.kept[index] = mask
        self._needs_all |= (typical < 1) & ~self.is_closed

    def _apply_min_p(self) -> None:
        min_p = self._rows.columns["min_p"]
        active = min_p > 0
        if not active.any():
            return
        largest = np.where(self.kept, self.weights, 0.0).max(axis=1, keepdims=True)
        self.kept &= ~active | (self.weights >= min_p * largest)
        self._close_where_last_is_gone(active[:, 0])

    def _apply_top_p(self) -> None:
        top_p = self._rows.columns["top_p"]
        active = np.flatnonzero(top_p[:, 0] < 1)
        if not active.size:
            return
        # Before a row is closed only the mass of all its tokens is known, not of those that an earlier filter left.
        is_narrowed = (self._rows.columns["min_p"] > 0) | (self._rows.columns["top_n_sigma"] > 0)
        is_narrowed |= self._top_k_limits() < self._vocabulary
        self._needs_all |= (top_p[:, 0] < 1) & is_narrowed[:, 0] & ~self.is_closed
        weights = np.where(self.kept[active], self.weights[active], 0.0)
        sums = np.cumsum(weights, axis=1)
        totals = sums[:, -1].copy()
        for place in np.flatnonzero(self._is_whole()[active]):
            totals[place] = self.total_of(int(active[place]))
        before = np.concatenate([np.zeros((len(active), 1)), sums[:, :-1]], axis=1)
        enough = before >= top_p[active] * totals[:, None]
        first = self.kept[active].argmax(axis=1)
        enough[np.arange(len(active)), first] = False  # the likeliest token always stays
        self.kept[active] &= ~enough
        self._close_where_last_is_gone(top_p[:, 0] < 1)

    def _apply_xtc(self) -> None:
        """Leaves out all but the least likely of the tokens above the threshold, sometimes.

        Source: p-e-w, "Exclude top choices", text-generation-webui pull request 6335.
        """
        is_hit = self._rows.second < self._rows.columns["xtc_probability"][:, 0]
        if not is_hit.any():
            return
        threshold = self._rows.columns["xtc_threshold"][:, 0]
        is_whole = self._is_whole()
        for index in np.flatnonzero(is_hit):
            weights = np.where(self.kept[index], self.weights[index], 0.0)
            total = self.total_of(int(index)) if is_whole[index] else float(np.cumsum(weights)[-1])
            above = np.flatnonzero(self.kept[index] & (weights >= threshold[index] * total))
            if len(above) > 1:
                self.kept[index, above[:-1]] = False

    def _apply_mirostat(self) -> None:
        """Keeps the tokens of at most mu bits of surprise (Basu et al., "Mirostat", 2021, second version)."""
        for index, row in enumerate(self._rows.rows):
            if row.params.mirostat:
                limit = self.total_of(index) * 2.0 ** -min(row.most_surprise, 1000.0)
                mask = self.weights[index] >= limit
                mask[0] = True
                self._keep_only(index, mask)

    def _keep_only(self, index: int, mask: _BoolArray) -> None:
        self.kept[index] &= mask
        self.is_closed[index] |= not self.kept[index, self._counts[index, 0] - 1]

    def _close_where_last_is_gone(self, active: _BoolArray) -> None:
        """A filter that keeps the likeliest tokens and dropped a row's last candidate keeps nothing beyond it."""
        last = np.take_along_axis(self.kept, self._counts - 1, axis=1)[:, 0]
        self.is_closed |= active & ~last

    def _is_whole(self) -> _BoolArray:
        """Which rows have lost no token so far, bool `[B]`: their mass is that of all their tokens."""
        return np.asarray(~self.is_closed | (self.kept.sum(axis=1) == self._vocabulary))


def _weights(
    values: Float32Array, best: np.float32 | Float32Array, temperature: np.float64 | Float64Array
) -> Float64Array:
    """`exp((logit - largest) / temperature)` in float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = (values.astype(np.float64) - best) / temperature
        return np.asarray(np.exp(scaled, out=scaled))


def _places_of(hits: _BoolArray) -> Int64Array:
    """`np.flatnonzero` of a contiguous array in which nearly all is False: eight at a time first."""
    flat = hits.reshape(-1)
    whole = flat.size // 8 * 8
    words = np.flatnonzero(flat[:whole].view(np.uint64) != 0)
    near = (words[:, None] * 8 + np.arange(8)).reshape(-1)
    return np.concatenate([near[flat[near]], whole + np.flatnonzero(flat[whole:])])


def _pick(weights: Float64Array, target: Float64Array) -> Int64Array:
    """The place at which the running sum of each row's weights first exceeds `target` times their total."""
    sums = np.cumsum(weights, axis=1)
    places = (sums <= target[:, None] * sums[:, -1:]).sum(axis=1)
    # u < 1, yet u * total can round up to total: the last token with weight is then the one.
    last_with_weight = weights.shape[1] - 1 - (weights[:, ::-1] > 0).argmax(axis=1)
    return np.asarray(np.minimum(places, last_with_weight), dtype=np.int64)


def _pick_by_groups(weights: Float32Array, target: float) -> int:
    """As `_pick`, for one long row: sums of groups first, then one group. Their sums are this row's running sum."""
    groups = len(weights) // _GROUP
    head = weights[: groups * _GROUP].reshape(groups, _GROUP).sum(axis=1, dtype=np.float64)
    sums = np.cumsum(np.append(head, weights[groups * _GROUP :].sum(dtype=np.float64)))
    bound = target * float(sums[-1])
    group = min(int(np.searchsorted(sums, bound, side="right")), len(sums) - 1)
    while group > 0 and sums[group] == sums[group - 1]:
        group -= 1  # rounding: the last group with weight is then the one
    inside = weights[group * _GROUP : (group + 1) * _GROUP] if group < groups else weights[groups * _GROUP :]
    before = float(sums[group - 1]) if group else 0.0
    place = int((np.cumsum(inside, dtype=np.float64) + before <= bound).sum())
    return group * _GROUP + min(place, int(np.flatnonzero(inside > 0)[-1]))
