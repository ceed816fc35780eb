"""What a user may ask for, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from puna.errors import InvalidRequestError
from puna.pipelines.request import GenerateRequest
from puna.pipelines.sampling_params import SamplingParams, SamplingParamsInput


def test_defaults() -> None:
    made = SamplingParams()
    assert (made.top_k, made.top_p, made.min_p, made.temperature) == (-1, 1, 0, 1)
    assert (made.thinking_temperature, made.frequency_penalty, made.presence_penalty) == (None, 0, 0)
    assert (made.repetition_penalty, made.max_tokens, made.min_tokens) == (1, None, 0)
    assert (made.ignore_eos, made.stop, made.stop_token_ids, made.detokenize) == (False, None, None, True)
    assert made.logits_processors is None
    assert made.seed is None


def test_zero_top_k_means_all_and_zero_temperature_means_greedy() -> None:
    assert SamplingParams(top_k=0).top_k == -1
    greedy = SamplingParams(temperature=0, top_k=50)
    assert (greedy.top_k, greedy.is_greedy) == (1, True)
    assert not SamplingParams(top_k=0).is_greedy


@pytest.mark.parametrize(
    "bad",
    [
        {"top_k": -2},
        {"top_k": 1.5},
        {"top_k": True},
        {"top_p": -0.1},
        {"top_p": 1.1},
        {"min_p": 2},
        {"temperature": 2.1},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"thinking_temperature": 3},
        {"frequency_penalty": 2.5},
        {"presence_penalty": -2.5},
        {"repetition_penalty": 0},
        {"repetition_penalty": float("inf")},
        {"min_tokens": -1},
        {"min_tokens": True},
        {"max_tokens": 0},
        {"max_tokens": 2, "min_tokens": 3},
        {"seed": -1},
        {"seed": 1 << 64},
        {"stop": ("a", "")},
        {"stop": "a", "detokenize": False},
        {"stop_token_ids": (1, -1)},
    ],
    ids=str,
)
def test_values_outside_their_range_are_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as error:
        SamplingParams(**bad)
    assert error.value.param in bad


@pytest.mark.parametrize("edge", [{"top_p": 0.0}, {"min_p": 1}, {"temperature": 2}, {"seed": (1 << 64) - 1}], ids=str)
def test_the_ends_of_ranges_are_allowed(edge: dict[str, Any]) -> None:
    SamplingParams(**edge)


def test_one_stop_string_and_lists_become_tuples() -> None:
    assert SamplingParams(stop="x").stop == ("x",)  # type: ignore[arg-type]
    made = SamplingParams(stop=["a", "b"], stop_token_ids=[1])  # type: ignore[arg-type]
    assert (made.stop, made.stop_token_ids) == (("a", "b"), (1,))


def test_a_request_wins_over_defaults_and_these_over_the_class() -> None:
    defaults = SamplingParamsInput(temperature=0.6, top_p=0.9, stop_token_ids=(7,))
    made = SamplingParams.from_input(SamplingParamsInput(temperature=0.2), defaults)
    assert (made.temperature, made.top_p, made.min_p, made.stop_token_ids) == (0.2, 0.9, 0, (7,))
    assert SamplingParams.from_input(None, None).temperature == 1


def test_a_zero_is_a_stated_value() -> None:
    made = SamplingParams.from_input(SamplingParamsInput(temperature=0.0), SamplingParamsInput(temperature=0.6))
    assert made.is_greedy


def test_asking_for_a_temperature_leaves_greedy_defaults() -> None:
    greedy = SamplingParamsInput(temperature=0.0, top_k=1)
    assert SamplingParams.from_input(None, greedy).is_greedy
    assert SamplingParams.from_input(SamplingParamsInput(temperature=0.7), greedy).top_k == -1
    assert SamplingParams.from_input(SamplingParamsInput(temperature=0.7, top_k=3), greedy).top_k == 3


@pytest.mark.parametrize(
    "bad",
    [{}, {"text": "a", "token_ids": [1]}, {"messages": []}, {"token_ids": []}],
    ids=str,
)
def test_a_prompt_without_exactly_one_form_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        GenerateRequest(**bad)


def test_an_empty_text_is_a_prompt_and_identities_differ() -> None:
    assert GenerateRequest(text="").text == ""
    assert GenerateRequest(text="a").request_id != GenerateRequest(text="a").request_id
