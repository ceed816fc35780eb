"""Filters and edits against plain references, row by row; what mirostat and processed log-probabilities tell."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from puna.pipelines.context import MirostatState
from puna.pipelines.sampling import Sampler, SamplingRow
from puna.pipelines.sampling.draw import draw
from puna.pipelines.sampling.edits import apply_edits
from puna.pipelines.sampling.random_numbers import uniforms
from puna.pipelines.sampling.sampler import NothingAllowedError
from puna.pipelines.sampling_params import SamplingParams
from puna.pipelines.tokens import ends_in_repetition

NONE = np.zeros(0, dtype=np.int64)


def row(params: SamplingParams, tokens: list[int] | None = None, prompt_length: int = 1, **options: Any) -> SamplingRow:
    held = np.array([0] if tokens is None else tokens, dtype=np.int64)
    return SamplingRow(params, held, prompt_length, options.pop("forbidden", NONE), seed=params.seed or 0, **options)


def logits_of(seed: int, vocabulary: int, spread: float = 3.0) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((1, vocabulary)) * spread).astype(np.float32)


def kept_by_reference(line: npt.NDArray[np.float32], params: SamplingParams, second: float) -> set[int]:
    """Tokens that the filters leave, one filter after the other over Python lists."""
    scaled = (line.astype(np.float64) - line.max()) / params.temperature
    weight = np.exp(scaled)
    left = sorted(range(len(line)), key=lambda token: (-line[token], token))
    if params.top_n_sigma > 0:
        bound = line.max() - params.top_n_sigma * line.astype(np.float64).std()
        left = [token for token in left if line[token] >= bound]
    if params.top_k > 0:
        left = left[: params.top_k]
    if params.typical_p < 1:
        total = math.fsum(weight[left])
        probability = {token: weight[token] / total for token in left}
        entropy = -math.fsum(p * math.log(p) for p in probability.values() if p > 0)
        order = sorted(left, key=lambda token: abs(-math.log(probability[token]) - entropy))
        left = sorted(_until(order, probability, params.typical_p), key=left.index)
    if params.min_p > 0:
        most = max(weight[token] for token in left)
        left = [token for token in left if weight[token] >= params.min_p * most]
    if params.top_p < 1:
        total = math.fsum(weight[left])
        left = _until(left, {token: weight[token] / total for token in left}, params.top_p)
    if second < params.xtc_probability:
        total = math.fsum(weight[left])
        above = [token for token in left if weight[token] / total >= params.xtc_threshold]
        left = [token for token in left if token not in above[:-1]]
    return set(left)


def _until(order: list[int], probability: dict[int, float], mass: float) -> list[int]:
    """The shortest beginning that reaches the mass."""
    kept, running = [], 0.0
    for token in order:
        kept.append(token)
        running += probability[token]
        if running >= mass:
            break
    return kept


CHOICES: dict[str, Any] = {
    "top_k": st.sampled_from([-1, 2, 17, 300, 5000]),
    "top_p": st.sampled_from([1.0, 0.3, 0.9, 0.999]),
    "min_p": st.sampled_from([0.0, 0.02, 0.5]),
    "typical_p": st.sampled_from([1.0, 0.5, 0.95]),
    "top_n_sigma": st.sampled_from([0.0, 0.7, 2.0]),
    "xtc_probability": st.sampled_from([0.0, 0.5, 1.0]),
    "temperature": st.sampled_from([0.3, 1.0, 1.8]),
}


@settings(max_examples=80, deadline=None)
@given(
    values=st.fixed_dictionaries(CHOICES),
    seed=st.integers(0, 1 << 30),
    vocabulary=st.sampled_from([3, 64, 900, 20_000]),
    spread=st.sampled_from([0.3, 3.0, 8.0]),
)
@example(  # min-p keeps more than the candidates that are looked at first, top-p fewer
    values={
        "top_k": -1,
        "top_p": 0.3,
        "min_p": 0.02,
        "typical_p": 1.0,
        "top_n_sigma": 0.0,
        "xtc_probability": 0.0,
        "temperature": 1.8,
    },
    seed=0,
    vocabulary=20_000,
    spread=3.0,
)
@example(  # top-k leaves more than the candidates that are looked at first, top-p fewer
    values={
        "top_k": 300,
        "top_p": 0.9,
        "min_p": 0.0,
        "typical_p": 1.0,
        "top_n_sigma": 0.0,
        "xtc_probability": 0.0,
        "temperature": 1.0,
    },
    seed=0,
    vocabulary=900,
    spread=3.0,
)
def test_filters_keep_what_a_plain_reference_keeps(
    values: dict[str, Any], seed: int, vocabulary: int, spread: float
) -> None:
    params = SamplingParams(**values, xtc_threshold=0.15, seed=seed)
    logits = logits_of(seed, vocabulary, spread)
    item = row(params)
    second = float(uniforms([seed], [0], [item.position])[1][0])
    tokens, (distribution,) = draw(logits, logits.max(axis=1), [item], [True])
    assert distribution is not None
    expected = kept_by_reference(logits[0], params, second)
    found = set(distribution.ids.tolist())
    # Where a probability meets a bound to the last bits, one token more or less is right; in between there is one way.
    lost = {token for token in expected - found if np.exp((logits[0, token] - logits.max()) / params.temperature) > 0}
    assert len(lost) + len(found - expected) <= 1
    assert int(tokens[0]) in found


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.fixed_dictionaries(CHOICES), min_size=2, max_size=5),
    seed=st.integers(0, 1 << 30),
    vocabulary=st.sampled_from([70, 4099, 20_001]),
)
def test_a_row_cannot_tell_its_mates(values: list[dict[str, Any]], seed: int, vocabulary: int) -> None:
    logits = np.concatenate([logits_of(seed + index, vocabulary, 2.0 + index) for index in range(len(values))])
    params = [SamplingParams(**v, seed=seed + i, logprobs=3, logprobs_mode="processed") for i, v in enumerate(values)]
    together = Sampler().sample(logits, [row(item) for item in params])
    for index, item in enumerate(params):
        alone = Sampler().sample(logits[index : index + 1], [row(item)])
        assert alone.tokens[0] == together.tokens[index]
        assert alone.log_probabilities == together.log_probabilities[index : index + 1]


def test_the_order_of_filters_shows() -> None:
    """Top-p is measured against what top-k and min-p left."""
    logits = np.log(np.array([[0.4, 0.3, 0.2, 0.1]], dtype=np.float32))
    (_, (found,)) = draw(logits, logits.max(axis=1), [row(SamplingParams(top_k=2, top_p=0.56, seed=1))], [True])
    assert found is not None and found.ids.tolist() == [0]  # 0.4 / 0.7 reaches 0.56, 0.4 does not
    (_, (found,)) = draw(logits, logits.max(axis=1), [row(SamplingParams(top_p=0.56, seed=1))], [True])
    assert found is not None and found.ids.tolist() == [0, 1]


def test_xtc_leaves_the_least_likely_of_the_likely_ones() -> None:
    logits = np.log(np.array([[0.4, 0.3, 0.2, 0.1]], dtype=np.float32))
    params = SamplingParams(xtc_probability=1, xtc_threshold=0.15, seed=1)
    (_, (found,)) = draw(logits, logits.max(axis=1), [row(params)], [True])
    assert found is not None and found.ids.tolist() == [2, 3]
    params = SamplingParams(xtc_probability=1, xtc_threshold=0.35, seed=1)
    (_, (found,)) = draw(logits, logits.max(axis=1), [row(params)], [True])
    assert found is not None and found.ids.tolist() == [0, 1, 2, 3]  # a single likely token stays


def test_xtc_happens_as_often_as_it_says() -> None:
    logits = np.repeat(np.log(np.array([[0.6, 0.3, 0.1]], dtype=np.float32)), 4000, axis=0)
    params = SamplingParams(xtc_probability=0.25, xtc_threshold=0.2, seed=3)
    tokens = Sampler().sample(logits, [row(params, [0] * n) for n in range(1, 4001)]).tokens
    share = np.bincount(tokens, minlength=3) / 4000
    expected = 0.75 * np.array([0.6, 0.3, 0.1]) + 0.25 * np.array([0, 0.75, 0.25])
    np.testing.assert_allclose(share, expected, atol=0.03)


class TestMirostat:
    def run(self, tau: float, count: int = 400, seed: int = 5) -> list[float]:
        """Surprises of drawn tokens, in bits, over logits of one kind."""
        params = SamplingParams(mirostat=2, mirostat_tau=tau, mirostat_eta=0.2, seed=seed, top_k=3)  # no filter counts
        state, tokens, surprises = MirostatState(), [0], []
        for step in range(count):
            logits = logits_of(step, 400, 2.5)
            (token,) = Sampler().sample(logits, [row(params, tokens, mirostat=state)]).tokens.tolist()
            weights = np.exp(logits[0].astype(np.float64))
            surprises.append(-math.log2(weights[token] / weights.sum()))
            tokens.append(token)
        return surprises

    @pytest.mark.parametrize("tau", [3.0, 5.0])
    def test_surprise_stays_near_its_aim(self, tau: float) -> None:
        assert np.mean(self.run(tau)[100:]) == pytest.approx(tau, abs=0.4)

    def test_a_step_that_is_taken_again_gives_the_same(self) -> None:
        params = SamplingParams(mirostat=2, mirostat_tau=3.0, seed=5)
        state, tokens = MirostatState(), [0]
        for step in range(20):
            logits = logits_of(step, 400)
            item = row(params, tokens, mirostat=state)
            first, again = (int(Sampler().sample(logits, [item]).tokens[0]) for _ in range(2))
            assert first == again
            tokens.append(first)
        assert len(state._mu) <= 2  # nothing is kept of tokens long past

    def test_choices_do_not_share_it(self) -> None:
        params = SamplingParams(mirostat=2, seed=5)
        state, choices = MirostatState(), range(6)
        logits = logits_of(1, 400, 1.0)
        Sampler().sample(np.repeat(logits, 6, axis=0), [row(params, mirostat=state, choice=c) for c in choices])
        for choice in choices:
            alone = MirostatState()
            Sampler().sample(logits, [row(params, mirostat=alone, choice=choice)])
            assert state.at(choice, 2, 5.0) == alone.at(choice, 2, 5.0)
        assert len({state.at(choice, 2, 5.0) for choice in choices}) > 1


def edited(values: list[float], params: SamplingParams, tokens: list[int], **options: Any) -> list[float]:
    line = np.array(values, dtype=np.float32)
    apply_edits(line, row(params, tokens, **options))
    return [float(value) for value in line]


INF = -math.inf


@pytest.mark.parametrize(
    ("params", "tokens", "expected"),
    [
        ({"logit_bias": {1: 2.5, 9: 1.0}}, [0], [1, 3.5, 1, 1]),
        ({"allowed_token_ids": [2, 3, 77]}, [0], [INF, INF, 1, 1]),
        ({"banned_token_ids": [2, 77]}, [0], [1, 1, INF, 1]),
        ({"no_repeat_ngram_size": 1}, [2, 1], [1, INF, INF, 1]),
        ({"no_repeat_ngram_size": 2}, [2, 3, 1, 2], [1, 1, 1, INF]),
        ({"no_repeat_ngram_size": 3}, [2, 3, 1, 0, 2, 3], [1, INF, 1, 1]),
        ({"no_repeat_ngram_size": 3}, [2, 3], [1, 1, 1, 1]),
        ({"presence_penalty": 0.5, "penalty_window": 2}, [0, 1, 2, 3], [1, 1, 0.5, 0.5]),
        ({"frequency_penalty": 0.25, "penalty_window": 3}, [0, 3, 3, 3, 1], [1, 0.75, 1, 0.5]),
        ({"repetition_penalty": 2.0, "penalty_window": 1}, [0, 3], [1, 1, 1, 0.5]),
        ({"dry_multiplier": 0.5, "dry_base": 2.0}, [1, 2, 3, 1, 2], [1, 1, 1, 0.5]),  # a repetition of 2: 0.5 * 2**0
        ({"dry_multiplier": 0.5, "dry_base": 2.0}, [0, 1, 2, 3, 0, 1, 2], [1, 1, 1, 0]),  # of 3: 0.5 * 2**1
        ({"dry_multiplier": 0.5, "dry_base": 2.0, "dry_allowed_length": 3}, [1, 2, 3, 1, 2], [1, 1, 1, 1]),
        ({"dry_multiplier": 0.5, "dry_base": 2.0, "dry_window": 4}, [1, 2, 3, 1, 2], [1, 1, 1, 1]),
    ],
)
def test_edits_by_hand(params: dict[str, Any], tokens: list[int], expected: list[float]) -> None:
    assert edited([1, 1, 1, 1], SamplingParams(**params), tokens) == expected


def test_a_breaker_interrupts_a_repetition() -> None:
    params = SamplingParams(dry_multiplier=0.5, dry_base=2.0)
    tokens = [0, 1, 2, 3, 0, 1, 2]
    assert edited([1, 1, 1, 1], params, tokens, dry_breakers=frozenset({0})) == [1, 1, 1, 0.5]
    assert edited([1, 1, 1, 1], params, tokens, dry_breakers=frozenset({2})) == [1, 1, 1, 1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 4))
def test_dry_finds_the_longest_repetition(tokens: list[int], allowed: int) -> None:
    params = SamplingParams(dry_multiplier=1.0, dry_base=1.5, dry_allowed_length=allowed)
    expected = [0.0] * 4
    for end in range(len(tokens) - 1):
        length = 0
        while length <= end and tokens[end - length] == tokens[len(tokens) - 1 - length]:
            length += 1
        if length >= allowed:
            expected[tokens[end + 1]] = min(expected[tokens[end + 1]], -(1.5 ** (length - allowed)))
    assert edited([0, 0, 0, 0], params, tokens) == pytest.approx(expected, rel=1e-6)


def test_an_endless_repetition_is_no_overflow() -> None:
    params = SamplingParams(dry_multiplier=5.0, dry_base=100.0)
    values = edited([3.0, 1.0], params, [0] * 900)
    assert values[1] == 1.0 and math.isfinite(values[0]) and values[0] < -1e30


def test_bad_words_are_cut_at_their_last_token() -> None:
    words = ((1,), (2, 3), (0, 1, 2))
    assert edited([1, 1, 1, 1], SamplingParams(), [3], bad_words=words) == [1, INF, 1, 1]
    assert edited([1, 1, 1, 1], SamplingParams(), [0, 2], bad_words=words) == [1, INF, 1, INF]
    assert edited([1, 1, 1, 1], SamplingParams(), [0, 1], bad_words=words) == [1, INF, INF, 1]


def test_when_everything_is_forbidden_the_request_is_told() -> None:
    params = SamplingParams(allowed_token_ids=[2], banned_token_ids=[2], seed=1)
    logits = np.zeros((2, 5), dtype=np.float32)
    result = Sampler().sample(logits, [row(params), row(SamplingParams(temperature=0))])
    assert isinstance(result.errors[0], NothingAllowedError) and result.errors[1] is None
    assert "no token may stand at position 1" in str(result.errors[0])


class TestLogProbabilities:
    def record(self, logits: npt.NDArray[np.float32], params: SamplingParams) -> Any:
        sampled = Sampler().sample(logits, [row(params)])
        (record,) = sampled.log_probabilities
        return int(sampled.tokens[0]), record

    def test_raw_ones_do_not_see_edits_and_filters(self) -> None:
        logits = np.log(np.array([[0.5, 0.25, 0.125, 0.125]], dtype=np.float32))
        params = SamplingParams(temperature=0.2, banned_token_ids=[0], top_k=2, logprobs=2, logprob_token_ids=[3, 99])
        token, record = self.record(logits, params)
        (values,), (ranks,) = record.top_log_probabilities, record.ranks
        assert values[0] == pytest.approx(math.log(0.5)) and values[3] == pytest.approx(math.log(0.125))
        assert ranks == {0: 1, 1: 2, 2: 3, 3: 4} if token == 2 else {0: 1, 1: 2, 3: 4}

    def test_processed_ones_are_what_the_draw_was_made_from(self) -> None:
        logits = np.log(np.array([[0.5, 0.25, 0.125, 0.125]], dtype=np.float32))
        params = SamplingParams(banned_token_ids=[0], top_k=2, seed=1, logprobs=2, logprobs_mode="processed")
        _token, record = self.record(logits, params)
        (values,) = record.top_log_probabilities
        assert list(values) == [1, 2]
        assert [math.exp(value) for value in values.values()] == pytest.approx([2 / 3, 1 / 3])

    def test_nothing_likeliest_is_the_token_alone(self) -> None:
        token, record = self.record(logits_of(3, 50), SamplingParams(temperature=0, logprobs=0))
        assert list(record.top_log_probabilities[0]) == [token] and record.ranks == [{token: 1}]

    def test_who_does_not_ask_gets_none(self) -> None:
        logits = np.repeat(logits_of(3, 50), 2, axis=0)
        rows = [row(SamplingParams(temperature=0, logprobs=1)), row(SamplingParams(temperature=0))]
        assert [record is None for record in Sampler().sample(logits, rows).log_probabilities] == [False, True]
        assert Sampler().sample(logits, [rows[1]] * 2).log_probabilities == ()


@pytest.mark.parametrize(
    ("tokens", "sizes", "count", "expected"),
    [
        ([1, 1, 1], (1, 5), 3, True),
        ([1, 1], (1, 5), 3, False),
        ([9, 1, 2, 1, 2, 1, 2], (1, 5), 3, True),
        ([9, 1, 2, 1, 2, 1, 2], (3, 5), 2, False),
        ([1, 2, 1, 2, 1], (1, 5), 2, True),  # 2 1 2 1
        ([1, 2, 3, 4, 5, 6], (1, 5), 2, False),
        ([], (1, 5), 2, False),
    ],
)
def test_loops_are_recognized(tokens: list[int], sizes: tuple[int, int], count: int, expected: bool) -> None:
    assert ends_in_repetition(np.array(tokens, dtype=np.int64), *sizes, count) is expected
