"""Log-probabilities of chosen and of likeliest tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.driver import Buffer
from puna.errors import InvalidRequestError, ShapeError
from puna.pipelines.architectures.llama3 import Llama3Inputs
from puna.pipelines.lib import LogProbabilitiesMixin, ModelOutputs
from puna.pipelines.lib.log_probabilities import log_softmax

ROW = [1.0, 2.0, 0.0, -1.0]


def inputs(tokens: list[int], offsets: list[int]) -> Llama3Inputs:
    return Llama3Inputs(
        tokens=Buffer.from_numpy(np.array(tokens, dtype=np.int64)),
        input_row_offsets=Buffer.from_numpy(np.array(offsets, dtype=np.uint32)),
        signal_buffers=[],
        return_n_logits=Buffer.from_numpy(np.array([1], dtype=np.int64)),
    )


def outputs(last: Any, every: Any = None, offsets: Any = None) -> ModelOutputs:
    rows = Buffer.from_numpy(np.array(last, dtype=np.float32))
    if every is None:
        return ModelOutputs(logits=rows, next_token_logits=rows)
    full = Buffer.from_numpy(np.array(every, dtype=np.float32))
    return ModelOutputs(full, rows, Buffer.from_numpy(np.array(offsets, dtype=np.uint32)))


def compute(made: Llama3Inputs, out: ModelOutputs, sampled: list[int], top_n: list[int], echo: list[bool]) -> Any:
    tokens = Buffer.from_numpy(np.array(sampled, dtype=np.int64))
    return LogProbabilitiesMixin().compute_log_probabilities(None, made, out, tokens, top_n, echo)  # type: ignore[arg-type]


def test_the_documented_figures() -> None:
    values = log_softmax(np.array(ROW, np.float32))
    assert values == pytest.approx([-1.440190, -0.440190, -2.440190, -3.440190], abs=1e-6)
    (record,) = compute(inputs([9], [0, 1]), outputs([ROW]), [3], [2], [False])
    assert record.token_log_probabilities == pytest.approx([-3.440190], abs=1e-6)
    (top,) = record.top_log_probabilities
    assert list(top) == [1, 0, 3]
    assert list(top.values()) == pytest.approx([-0.440190, -1.440190, -3.440190], abs=1e-6)


def test_the_chosen_token_is_not_repeated_when_it_is_among_the_best() -> None:
    (record,) = compute(inputs([9], [0, 1]), outputs([ROW]), [1], [2], [False])
    assert list(record.top_log_probabilities[0]) == [1, 0]


def test_values_are_plain_numbers() -> None:
    (record,) = compute(inputs([9], [0, 1]), outputs([ROW]), [3], [2], [False])
    assert type(record.token_log_probabilities[0]) is float
    assert {type(key) for key in record.top_log_probabilities[0]} == {int}
    assert {type(value) for value in record.top_log_probabilities[0].values()} == {float}


def test_echo_reports_the_following_token_at_each_position() -> None:
    rows = [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]]
    out = outputs(rows[1:], rows, [0, 2])
    (record,) = compute(inputs([7, 9], [0, 2]), out, [2], [1], [True])
    first, second = log_softmax(np.array(rows, np.float32))
    assert record.token_log_probabilities == [first[9], second[2]]
    assert [list(top) for top in record.top_log_probabilities] == [[9], [0, 2]]


def test_requests_are_served_one_by_one() -> None:
    every = np.arange(12, dtype=np.float32).reshape(3, 4)
    out = outputs(every[[1, 2]], every, [0, 2, 3])
    first, second = compute(inputs([1, 2, 3], [0, 2, 3]), out, [0, 1], [0, 3], [True, True])
    assert first is None
    assert second.token_log_probabilities == [float(log_softmax(every[2])[1])]


def test_echo_needs_the_logits_of_every_token() -> None:
    with pytest.raises(ValueError, match="enable_echo"):
        compute(inputs([7, 9], [0, 2]), outputs([ROW]), [2], [1], [True])
    variable = outputs([ROW], [ROW], [0, 1])  # one row of two tokens
    with pytest.raises(ValueError, match="enable_echo"):
        compute(inputs([7, 9], [0, 2]), variable, [2], [1], [True])


@pytest.mark.parametrize("top_n", [-1, 21])
def test_numbers_outside_0_to_20_are_refused(top_n: int) -> None:
    with pytest.raises(InvalidRequestError, match="logprobs"):
        compute(inputs([9], [0, 1]), outputs([ROW]), [3], [top_n], [False])


def test_twenty_are_given_and_a_small_vocabulary_gives_all() -> None:
    wide = np.arange(64, dtype=np.float32)
    (record,) = compute(inputs([9], [0, 1]), outputs([wide]), [63], [20], [False])
    assert list(record.top_log_probabilities[0]) == list(range(63, 43, -1))
    (record,) = compute(inputs([9], [0, 1]), outputs([ROW]), [3], [20], [False])
    assert len(record.top_log_probabilities[0]) == 4


def test_ties_are_ordered_by_id() -> None:
    (record,) = compute(inputs([9], [0, 1]), outputs([[5.0, 7.0, 5.0, 7.0, 5.0]]), [3], [3], [False])
    assert list(record.top_log_probabilities[0]) == [1, 3, 0]


def test_lists_of_another_length_are_refused() -> None:
    with pytest.raises(ShapeError, match="batch_echo"):
        compute(inputs([9], [0, 1]), outputs([ROW]), [3], [1], [False, True])
    with pytest.raises(ShapeError, match="next_token_logits"):
        compute(inputs([9, 9], [0, 1, 2]), outputs([ROW]), [3, 3], [1, 1], [False, False])


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40), st.data())
def test_float64_arithmetic_is_exact_to_rounding(values: list[float], data: st.DataObject) -> None:
    row = np.array(values, dtype=np.float32)
    token = data.draw(st.integers(0, len(values) - 1))
    (record,) = compute(inputs([0], [0, 1]), outputs([row]), [token], [3], [False])
    top = max(values)
    total = math.fsum(math.exp(v - top) for v in values)
    expected = values[token] - top - math.log(total)
    assert record.token_log_probabilities[0] == pytest.approx(expected, rel=1e-12, abs=1e-12)
