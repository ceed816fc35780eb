"""Sampling values: what is allowed, what is refused and by which sentence, and how sources are laid over each other."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace
from typing import Any

import pytest

from puna.errors import InvalidRequestError
from puna.pipelines.beam_search_params import BeamSearchParams
from puna.pipelines.lib.generation_config import generation_defaults
from puna.pipelines.sampling_params import RepetitionDetection, SamplingParams, SamplingParamsInput


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"n": 0}, "n: must be from 1 to 128, got 0"),
        ({"n": 129}, "n: must be from 1 to 128, got 129"),
        ({"n": 3, "best_of": 2}, "best_of: 2 is below n (3)"),
        ({"n": 2, "temperature": 0}, "n: 2 greedy continuations would be equal"),
        ({"best_of": 2, "top_k": 1}, "best_of: 2 greedy continuations would be equal"),
        ({"typical_p": 0}, "typical_p: must be above 0 and at most 1, got 0"),
        ({"top_n_sigma": -1}, "top_n_sigma: must be finite and at least 0, got -1"),
        ({"xtc_probability": 1.5}, "xtc_probability: must be from 0 to 1, got 1.5"),
        ({"xtc_threshold": "x"}, "xtc_threshold: must be a number, got 'x'"),
        ({"mirostat": 1}, "mirostat: must be 0 or 2, got 1"),
        ({"mirostat_tau": 0}, "mirostat_tau: must be finite and above 0, got 0"),
        ({"mirostat_eta": 0}, "mirostat_eta: must be above 0 and at most 1, got 0"),
        ({"repetition_penalty": 0}, "repetition_penalty: must be finite and above 0, got 0"),
        ({"penalty_window": 0}, "penalty_window: must be at least 1, got 0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size: must be at least 0, got -1"),
        ({"dry_multiplier": float("nan")}, "dry_multiplier: must be finite and at least 0, got nan"),
        ({"dry_base": 0.5}, "dry_base: must be finite and at least 1, got 0.5"),
        ({"dry_allowed_length": 0}, "dry_allowed_length: must be at least 1, got 0"),
        ({"dry_sequence_breakers": [""]}, "dry_sequence_breakers: must be strings that are not empty"),
        ({"logit_bias": {1: 101}}, "logit_bias: must be from -100 to 100, got 101"),
        ({"logit_bias": {-1: 1}}, "logit_bias: must be at least 0, got -1"),
        ({"logit_bias": [1]}, "logit_bias: must map token ids to numbers, got [1]"),
        ({"allowed_token_ids": []}, "allowed_token_ids: must not be empty: nothing could be generated"),
        ({"banned_token_ids": "12"}, "banned_token_ids: must be a list of token ids, got '12'"),
        ({"banned_token_ids": [1.5]}, "banned_token_ids: must be an integer, got 1.5"),
        ({"bad_words": ["a", 3]}, "bad_words: must be strings that are not empty"),
        ({"stop": ["x"] * 17}, "stop: at most 16 strings, got 17"),
        ({"deadline_s": 0}, "deadline_s: must be finite and above 0, got 0"),
        ({"logprobs": 21}, "logprobs: must be from 0 to 20, got 21"),
        ({"prompt_logprobs": -1}, "prompt_logprobs: must be from 0 to 20, got -1"),
        ({"logprob_token_ids": [1]}, "logprob_token_ids: needs logprobs or prompt_logprobs"),
        ({"logprobs": 0, "logprob_token_ids": range(1025)}, "logprob_token_ids: at most 1024 ids, got 1025"),
        ({"logprobs_mode": "cooked"}, "logprobs_mode: must be raw or processed, got 'cooked'"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens: must be at least 1, or -1, got 0"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens: must be at least -1, got -2"),
        ({"ignore_eos": 1}, "ignore_eos: must be true or false, got 1"),
        ({"logits_processors": [3]}, "logits_processors: must be functions"),
        ({"repetition_detection": 3}, "repetition_detection: must be a RepetitionDetection, got 3"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_out_of_range_is_named_with_its_range(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        SamplingParams(**bad)
    assert str(error.value).startswith(message)


def test_every_numeric_value_refuses_what_is_no_number() -> None:
    for field in fields(SamplingParams):
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            for bad in ("1", None, float("nan"), [1], True):
                with pytest.raises(InvalidRequestError):
                    SamplingParams(**{field.name: bad})


def test_sequences_become_tuples_and_bias_a_copy() -> None:
    bias = {3: 1}
    made = SamplingParams(
        allowed_token_ids={4}, banned_token_ids=[5], bad_words="bad", logit_bias=bias, dry_sequence_breakers=["."]
    )
    bias[3] = 99
    assert (made.allowed_token_ids, made.banned_token_ids, made.bad_words) == ((4,), (5,), ("bad",))
    assert (made.logit_bias, made.dry_sequence_breakers) == ({3: 1.0}, (".",))


def test_they_are_values() -> None:
    made = SamplingParams(
        n=2, temperature=0.7, stop=["x"], logit_bias={1: 2}, repetition_detection=RepetitionDetection(min_count=3)
    )
    assert made.edits_logits and not made.has_filters  # what was derived is no part of the value
    assert pickle.loads(pickle.dumps(made)) == made == replace(made)
    assert hash(made) == hash(replace(made)) and made != replace(made, n=3)
    with pytest.raises(AttributeError):
        made.n = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "bad",
    [
        {"max_pattern_size": 0},
        {"max_pattern_size": 1025},
        {"min_pattern_size": 21},
        {"min_count": 1},
    ],
)
def test_repetition_detection_is_checked(bad: dict[str, int]) -> None:
    with pytest.raises(InvalidRequestError, match="repetition_detection"):
        RepetitionDetection(**bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"beam_width": 0},
        {"beam_width": 129},
        {"max_tokens": 0},
        {"length_penalty": float("inf")},
        {"stop_token_ids": [-1]},
    ],
)
def test_beam_search_values_are_checked(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(InvalidRequestError, match=name):
        BeamSearchParams(**({"beam_width": 2, "max_tokens": 3} | bad))


class TestInput:
    def test_unknown_names_are_refused_with_the_closest_one(self) -> None:
        with pytest.raises(InvalidRequestError, match="max_token: there is no such sampling value; is max_tokens"):
            SamplingParamsInput(max_token=3)

    def test_what_is_not_stated_is_none(self) -> None:
        made = SamplingParamsInput(temperature=0.5, top_k=None)
        assert (made.temperature, made.top_k, made.stated()) == (0.5, None, {"temperature": 0.5})
        with pytest.raises(AttributeError, match="nonsense"):
            _ = made.nonsense

    def test_it_is_laid_over_another(self) -> None:
        made = SamplingParamsInput(temperature=0.5).over(SamplingParamsInput(temperature=1, top_p=0.9))
        assert made == SamplingParamsInput(temperature=0.5, top_p=0.9)
        assert pickle.loads(pickle.dumps(made)) == made


def test_a_generation_config_gives_defaults(tmp_path: Any) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(
        '{"temperature": 0.6, "top_p": 0.9, "typical_p": 0.8, "max_new_tokens": 7, "no_repeat_ngram_size": 3, '
        '"eos_token_id": [1, 2], "transformers_version": "4"}'
    )
    assert generation_defaults(path) == SamplingParamsInput(
        temperature=0.6, top_p=0.9, typical_p=0.8, max_tokens=7, no_repeat_ngram_size=3, stop_token_ids=(1, 2)
    )
