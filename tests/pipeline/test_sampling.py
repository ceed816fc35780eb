"""The sampler: known answers of the generator, filters against a plain reference, rows that cannot see each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.pipelines.sampling import NonFiniteLogitsError, Sampler, SamplingRow
from puna.pipelines.sampling.edits import apply_edits
from puna.pipelines.sampling.random_numbers import philox_4x32, uniforms
from puna.pipelines.sampling_params import SamplingParams

NONE = np.zeros(0, dtype=np.int64)


def row(params: SamplingParams, tokens: list[int] | None = None, prompt_length: int = 1, **options: Any) -> SamplingRow:
    held = np.array([0] if tokens is None else tokens, dtype=np.int64)
    return SamplingRow(params, held, prompt_length, options.pop("forbidden", NONE), seed=params.seed or 0, **options)


def uniform(rows: list[SamplingRow]) -> npt.NDArray[np.float64]:
    made = uniforms([r.seed for r in rows], [r.choice for r in rows], [r.position for r in rows])
    return made[0]


def sample(logits: npt.NDArray[np.float32], rows: list[SamplingRow]) -> list[int]:
    return Sampler().sample(logits, rows).tokens.tolist()


def random_logits(seed: int, rows: int, vocab: int = 64, ties: bool = True) -> npt.NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal((rows, vocab)) * 3
    return (np.round(values * 2) / 2 if ties else values).astype(np.float32)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter: list[int], key: list[int], expected: str) -> None:
    words = philox_4x32(np.array(counter, dtype=np.uint64)[:, None], np.array(key, dtype=np.uint64)[:, None])
    assert " ".join(f"{int(word[0]):08x}" for word in words) == expected


def test_uniform_is_a_function_of_seed_choice_and_position() -> None:
    base = row(SamplingParams(seed=7), [1, 2, 3])
    others = [
        row(SamplingParams(seed=8), [1, 2, 3]),
        row(SamplingParams(seed=7 + (1 << 40)), [1, 2, 3]),
        row(SamplingParams(seed=7), [1, 2]),
        row(SamplingParams(seed=7), [1, 2, 3], choice=1),
    ]
    values = uniform([base, *others])
    assert len(set(values.tolist())) == 5
    assert values[0] == uniform([row(SamplingParams(seed=7), [9, 9, 9])])[0]
    many = uniform([row(SamplingParams(seed=3), [0] * length) for length in range(1, 2000)])
    assert many.min() >= 0 and many.max() < 1 and abs(many.mean() - 0.5) < 0.02


def reference_kept(logits: npt.NDArray[np.float32], params: SamplingParams) -> list[int]:
    """The tokens that the filters leave, one plain loop at a time."""
    order = sorted(range(len(logits)), key=lambda index: (-logits[index], index))
    weights = np.exp((logits.astype(np.float64) - logits.max()) / params.temperature)
    if params.top_k > 0:
        order = order[: params.top_k]
    order = [index for index in order if weights[index] >= params.min_p]
    if params.top_p < 1:
        total, running, kept = sum(weights[index] for index in order), 0.0, []
        for index in order:
            kept.append(index)
            running += weights[index]
            if running >= params.top_p * total:
                break
        order = kept
    return sorted(order)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    temperature=st.floats(0.05, 2),
    top_k=st.integers(-1, 70),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
)
def test_draw_inverts_the_distribution_of_the_kept(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    logits = random_logits(seed, 1)
    kept = reference_kept(logits[0], params)
    weights = np.exp((logits[0].astype(np.float64) - logits.max()) / temperature)[kept]
    edges = np.cumsum(weights)
    drawn = row(params)
    target = uniform([drawn])[0] * edges[-1]
    (token,) = sample(logits, [drawn])
    if params.is_greedy:
        assert token == int(logits.argmax())
        return
    place = kept.index(token)
    slack = 1e-9 * edges[-1]
    assert (edges[place - 1] if place else 0.0) - slack <= target <= edges[place] + slack


@pytest.mark.parametrize("candidates", [1, 3, 20])
def test_looking_at_few_candidates_first_changes_nothing(candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(8, 60)
    choices = [{"top_p": 0.3}, {"top_p": 0.99}, {"top_k": 5}, {"top_k": 40, "top_p": 0.9}, {"min_p": 0.01}, {}]
    rows = [row(SamplingParams(seed=seed, temperature=1.5, **choices[seed % 6])) for seed in range(60)]  # type: ignore[arg-type]
    whole = sample(logits, rows)
    monkeypatch.setattr("puna.pipelines.sampling.draw._WIDTHS", (candidates,))
    assert sample(logits, rows) == whole


def test_frequencies_follow_the_probabilities() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], dtype=np.float32))
    rows = [row(SamplingParams(seed=11), [0] * length) for length in range(1, 8001)]
    counts = np.bincount(sample(np.repeat(logits, 8000, axis=0), rows), minlength=4) / 8000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.02)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30), count=st.integers(2, 6), data=st.data())
def test_rows_do_not_depend_on_their_mates(seed: int, count: int, data: st.DataObject) -> None:
    logits = random_logits(seed, count, vocab=4097, ties=False)
    rows = [
        row(
            SamplingParams(
                seed=data.draw(st.integers(0, 1 << 40)),
                temperature=data.draw(st.sampled_from([0, 0.7, 1.3])),
                top_k=data.draw(st.sampled_from([-1, 5, 50])),
                top_p=data.draw(st.sampled_from([0.5, 0.9, 1.0])),
                min_p=data.draw(st.sampled_from([0.0, 0.1])),
                repetition_penalty=data.draw(st.sampled_from([1.0, 1.5])),
            ),
            data.draw(st.lists(st.integers(0, 4096), min_size=1, max_size=5)),
        )
        for _ in range(count)
    ]
    together = sample(logits, rows)
    assert together == [sample(logits[index : index + 1], [item])[0] for index, item in enumerate(rows)]
    assert together[::-1] == sample(np.ascontiguousarray(logits[::-1]), rows[::-1])


def test_greedy_takes_the_lowest_of_equal_logits() -> None:
    assert sample(np.array([[1, 5, 5, 0]], dtype=np.float32), [row(SamplingParams(temperature=0))]) == [1]


@pytest.mark.parametrize("options", [{"top_p": 0.0}, {"min_p": 1.0}, {"top_k": 1}, {"temperature": 1e-300}])
def test_narrowest_filters_leave_the_best_token(options: dict[str, float]) -> None:
    logits = random_logits(4, 1, ties=False)
    assert sample(logits, [row(SamplingParams(**options))]) == [int(logits.argmax())]  # type: ignore[arg-type]


def edited(logits: list[float], **options: Any) -> list[float]:
    """Logits after the row's edits, seen by a processor that runs on the next call."""
    line = np.array(logits, dtype=np.float32)
    apply_edits(line, row(**options))
    return [float(value) for value in line]


def test_penalties_by_hand() -> None:
    params = SamplingParams(repetition_penalty=1.5, frequency_penalty=0.5, presence_penalty=0.25)
    tokens = [1, 0, 0, 0]  # the prompt is token 1; token 0 was generated three times
    assert edited([2.0, -2.0, 1.0], params=params, tokens=tokens) == pytest.approx([-0.4166667, -3.0, 1.0])


def test_repetition_penalty_leaves_the_given_logits_alone() -> None:
    logits = np.array([[2.0, 1.9]], dtype=np.float32)
    assert sample(logits, [row(SamplingParams(temperature=0, repetition_penalty=2.0), [0])]) == [1]
    assert logits.tolist() == [[2.0, np.float32(1.9)]]


def test_forbidden_and_padding_tokens_are_not_drawn() -> None:
    logits = np.array([[1, 2, 9, 3, 8]], dtype=np.float32)
    item = row(SamplingParams(temperature=0), forbidden=np.array([2], dtype=np.int64), vocab_size=4)
    assert sample(logits, [item]) == [3]


def test_processors_see_and_edit_one_row() -> None:
    def only_token_two(line: npt.NDArray[np.float32]) -> None:
        assert line.shape == (1, 4)
        line[:, [0, 1, 3]] = -np.inf

    logits = np.array([[9, 1, 1, 1], [9, 1, 1, 1]], dtype=np.float32)
    rows = [row(SamplingParams(), processors=(only_token_two,)), row(SamplingParams(temperature=0))]
    assert sample(logits, rows) == [2, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_not_a_number_is_an_error_of_its_row(bad: float, temperature: float) -> None:
    logits = random_logits(1, 3)
    params = [SamplingParams(temperature=temperature, seed=index) for index in range(3)]
    clean = sample(logits, [row(item) for item in params])
    logits[1, 5] = bad
    result = Sampler().sample(logits, [row(item) for item in params])
    assert [type(error) for error in result.errors] == [type(None), NonFiniteLogitsError, type(None)]
    assert result.tokens[[0, 2]].tolist() == [clean[0], clean[2]]


def test_nothing_to_sample() -> None:
    assert Sampler().sample(np.zeros((0, 5), dtype=np.float32), []).errors == ()
