"""What an `LLM` reads of prompts is the same, bit by bit, whether one copy of the model reads them or two."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from puna import LLM, SamplingParams
from support.family_model import random_prompt
from support.tiny_model import write_tiny_model

COUNTS = (5, 40, 17, 29, 3, 33)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LLM, LLM]]:
    path = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    options = {"threads": 2, "max_num_seqs": 4, "max_num_batched_tokens": 24, "block_size": 8, "max_model_len": 128}
    with LLM(path, **options) as one, LLM(path, data_parallel_degree=2, **options) as two:  # type: ignore[arg-type]
        yield one, two


def prompts_for(llm: LLM) -> list[list[int]]:
    return [random_prompt(llm.tokenizer.vocab_size, count, seed=count) for count in COUNTS]


def test_logits_and_hidden_states(models: tuple[LLM, LLM]) -> None:
    one, two = models
    prompts = prompts_for(one)
    for mine, theirs in zip(two.logits(prompts), one.logits(prompts), strict=True):
        assert np.array_equal(mine, theirs)
    both = zip(two.encode(prompts, layers=[0, 1, -1]), one.encode(prompts, layers=[0, 1, -1]), strict=True)
    for got, expected in both:
        assert all(np.array_equal(got[layer], expected[layer]) for layer in (0, 1, -1))
    assert np.array_equal(two.embed(prompts), one.embed(prompts))
    assert all(replica.kv.counts().cached > 0 for replica in two.pipeline._scheduler._replicas), "both were used"


def test_scores(models: tuple[LLM, LLM]) -> None:
    one, two = models
    prompt, *choices = prompts_for(one)
    assert two.score(prompt, choices) == one.score(prompt, choices)
    assert np.array_equal(two.token_logprobs(choices[0], window=16), one.token_logprobs(choices[0], window=16))


def test_prompt_log_probabilities_beside_generation(models: tuple[LLM, LLM]) -> None:
    one, two = models
    prompts = prompts_for(one)
    params = [
        SamplingParams(max_tokens=6, seed=number, logprobs=2, prompt_logprobs=3 if number % 2 else None)
        for number in range(len(prompts))
    ]
    got, expected = two.generate(prompts, params), one.generate(prompts, params)
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.prompt_logprobs == theirs.prompt_logprobs
        assert mine.outputs[0].token_ids == theirs.outputs[0].token_ids
        assert mine.outputs[0].logprobs == theirs.outputs[0].logprobs
