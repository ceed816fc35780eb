"""The default model from the command line: `make run` has fetched it, so these tests fail where it is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from puna.entrypoints.llm import LLM
from puna.models import DEFAULT_MODEL
from puna.pipelines.request import GenerateRequest
from puna.pipelines.sampling_params import SamplingParams
from support.answers import answers

pytestmark = pytest.mark.slow

QUESTION = "What is the capital of France?"
PROMPTS = [QUESTION, "Count from one to ten.", "Write a haiku about rain. " * 12, "Hi"]


def generate(*arguments: str, **environment: str) -> Any:
    command = [sys.executable, "-m", "puna.entrypoints.cli", "generate", DEFAULT_MODEL, "--json", *arguments]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def requests(temperature: float) -> list[GenerateRequest]:
    return [
        GenerateRequest(
            messages=[{"role": "user", "content": prompt}],
            sampling_params=SamplingParams(temperature=temperature, seed=seed, max_tokens=40),
        )
        for seed, prompt in enumerate(PROMPTS)
    ]


def test_it_answers() -> None:
    answer = generate("-p", "What is 2+2?", "-n", "40")
    assert "4" in answer["text"] and answer["finish_reason"] == "stop"
    assert generate("-p", "The capital of France is", "--no-chat", "-n", "2")["text"].startswith(" Paris")


def test_first_token_comes_soon() -> None:
    # A busy machine makes some starts slow, so the best of a few counts.
    durations = []
    for _ in range(5):
        begin = time.perf_counter()
        generate("-p", QUESTION, "-n", "1")
        durations.append(time.perf_counter() - begin)
    assert min(durations) < 1.0, durations


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_text_is_the_requests_own(temperature: float) -> None:
    alone_llm = LLM(DEFAULT_MODEL, enable_prefix_caching=False, threads=1)
    alone = [answers(alone_llm, [item])[0].token_ids for item in requests(temperature)]
    crowd = LLM(DEFAULT_MODEL, max_num_seqs=3, max_num_batched_tokens=33, block_size=16, threads=2, max_num_steps=2)
    assert [item.token_ids for item in answers(crowd, requests(temperature))] == alone


def test_variants_give_the_same_text() -> None:
    from puna import _native

    arguments = ["-p", PROMPTS[2], "-n", "12", "--temperature", "1", "--seed", "1"]
    texts = {name: generate(*arguments, PUNA_VARIANT=name)["token_ids"] for name in _native.supported_variants()}
    assert len({tuple(tokens) for tokens in texts.values()}) == 1, texts


def test_variant_that_cannot_run_is_a_sentence() -> None:
    command = [sys.executable, "-m", "puna.entrypoints.cli", "generate", DEFAULT_MODEL, "-p", "x"]
    environment = os.environ | {"PUNA_VARIANT": "nonsense"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1  # neither a traceback nor talk of leaks
    assert done.stderr.startswith("error: PUNA_VARIANT: unknown variant 'nonsense'; this build has: ")
