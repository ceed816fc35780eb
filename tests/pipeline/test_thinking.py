"""`thinking_temperature`: the temperature inside the model's reasoning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from puna.entrypoints.cli import run
from puna.entrypoints.llm import LLM
from puna.errors import InvalidRequestError
from puna.pipelines.context import TextContext
from puna.pipelines.sampling_params import SamplingParams
from puna.pipelines.thinking import ThinkingSection
from support.tiny_model import TEMPLATE, write_tiny_model
from support.tiny_tokenizers import byte_level_tokenizer_json

HELLO = [{"role": "user", "content": "Hi"}]
MARKED = "{# <think> </think> #}"
BEGIN, END, LENGTH = 3, 9, 16  # where markers stand in the answers that tests force, and how long these are


def load(directory: Path, template: str, **options: Any) -> LLM:
    """A model whose vocabulary has both markers."""
    write_tiny_model(directory, template=template)
    tokenizer = Tokenizer.from_str(byte_level_tokenizer_json(890))
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")])
    (directory / "tokenizer.json").write_text(tokenizer.to_str())
    return LLM(str(directory), **options)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """Its template writes the first marker."""
    return load(tmp_path_factory.mktemp("opened"), TEMPLATE.replace("assistant\n", "assistant\n<think>\n") + MARKED)


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """Its answers may begin with one."""
    return load(tmp_path_factory.mktemp("free"), TEMPLATE + MARKED, max_num_seqs=3, max_num_batched_tokens=7)


def marker(llm: LLM, text: str) -> int:
    (token,) = llm.tokenize(text, add_special_tokens=False)
    return token


def params(llm: LLM, places: dict[int, str], **values: Any) -> SamplingParams:
    """Markers stand in these places of the output and in no others."""
    forced = {place: marker(llm, text) for place, text in places.items()}
    markers = [marker(llm, text) for text in ("<think>", "</think>")]

    def edit(logits: np.ndarray[Any, Any], context: TextContext) -> None:
        logits[:, markers] = -np.inf
        token = forced.get(len(context.output_tokens))
        if token is not None:
            logits[:] = -np.inf
            logits[:, token] = 0

    return SamplingParams(seed=5, max_tokens=LENGTH, ignore_eos=True, logits_processors=(edit,), **values)


def ids(llm: LLM, prompt: list[int], values: SamplingParams) -> tuple[int, ...]:
    (output,) = llm.generate([prompt], values)
    assert output.error is None
    return tuple(output.outputs[0].token_ids)


def test_an_open_section_has_its_own_temperature_and_the_rest_that_of_the_request(opened: LLM) -> None:
    prompt = list(opened.render(HELLO).token_ids)
    places = {END: "</think>"}
    found = ids(opened, prompt, params(opened, places, temperature=0, thinking_temperature=1.3))
    hot = ids(opened, prompt, params(opened, places, temperature=1.3))
    greedy = ids(opened, [*prompt, *found[: END + 1]], params(opened, {}, temperature=0))
    assert found[: END + 1] == hot[: END + 1]
    assert found[END + 1 :] == greedy[: LENGTH - END - 1]
    assert found[END + 1 :] != hot[END + 1 :]
    assert found[:END] != ids(opened, prompt, params(opened, places, temperature=0))[:END]
    (chat,) = opened.chat(HELLO, params(opened, places, temperature=0, thinking_temperature=1.3))
    assert tuple(chat.outputs[0].token_ids) == found


def test_a_section_of_the_answer_begins_at_its_marker(free: LLM) -> None:
    prompt = list(free.render(HELLO).token_ids)
    places = {BEGIN: "<think>", END: "</think>"}
    found = ids(free, prompt, params(free, places, temperature=1.3, thinking_temperature=0))
    hot = ids(free, prompt, params(free, places, temperature=1.3))
    greedy = ids(free, [*prompt, *found[: BEGIN + 1]], params(free, {}, temperature=0))
    assert found[: BEGIN + 1] == hot[: BEGIN + 1]
    assert found[BEGIN + 1 : END] == greedy[: END - BEGIN - 1] != hot[BEGIN + 1 : END]


def test_filters_and_top_k_stay(opened: LLM) -> None:
    prompt = list(opened.render(HELLO).token_ids)
    first = ids(opened, prompt, params(opened, {}, temperature=0.4, thinking_temperature=1.7, top_k=3, min_p=0.01))
    assert first == ids(opened, prompt, params(opened, {}, temperature=1.7, top_k=3, min_p=0.01))


def test_a_crowd_several_passes_and_continuations_change_nothing(free: LLM, tmp_path: Path) -> None:
    places = {BEGIN: "<think>", END: "</think>"}
    prompts = [list(free.render([{"role": "user", "content": text}]).token_ids) for text in ("Hi", "So", "Why not?")]
    values = params(free, places, temperature=0.3, thinking_temperature=1.5, n=2)
    alone = [free.generate([prompt], values)[0] for prompt in prompts]
    several = load(tmp_path, TEMPLATE + MARKED, max_num_seqs=4, max_num_steps=4, block_size=4, threads=1)
    for other in (free, several):
        for mine, theirs in zip(other.generate(prompts, values), alone, strict=True):
            assert [item.token_ids for item in mine.outputs] == [item.token_ids for item in theirs.outputs]
    assert alone[0].outputs[0].token_ids != alone[0].outputs[1].token_ids


def test_greedy_continuations_of_sampled_reasoning_differ(opened: LLM) -> None:
    values = params(opened, {}, temperature=0, thinking_temperature=1.5, n=2)
    (output,) = opened.chat(HELLO, values)
    assert output.outputs[0].token_ids != output.outputs[1].token_ids
    with pytest.raises(InvalidRequestError, match="greedy continuations"):
        SamplingParams(temperature=0, thinking_temperature=0, n=2)
    with pytest.raises(InvalidRequestError, match="greedy continuations"):
        SamplingParams(temperature=1, thinking_temperature=0.5, top_k=1, n=2)


@pytest.mark.parametrize(
    ("is_open", "output", "expected"),
    [
        (True, [], True),
        (True, [5, 6], True),
        (True, [5, 2], False),
        (True, [5, 2, 1, 5], False),  # the first section counts
        (False, [], False),
        (False, [5, 2], False),
        (False, [5, 1], True),
        (False, [2, 1, 5], True),
        (False, [1, 5, 2, 5], False),
        (False, [1, 2, 1], False),
    ],
)
def test_sections(is_open: bool, output: list[int], expected: bool) -> None:
    assert ThinkingSection(1, 2, is_open).holds_next(np.array(output, dtype=np.int64)) is expected


@pytest.mark.parametrize(
    ("prompt", "expected"), [([5], False), ([5, 1, 6], True), ([1, 2, 5], False), ([1, 2, 1], True)]
)
def test_a_prompt_of_the_callers_own(prompt: list[int], expected: bool) -> None:
    assert ThinkingSection.behind(np.array(prompt, dtype=np.int64), 1, 2).is_open is expected


@pytest.mark.parametrize("template", [TEMPLATE, TEMPLATE + "{# [THINK] [/THINK] #}", None])
def test_a_model_that_marks_no_reasoning_refuses_it(tmp_path: Path, template: str | None) -> None:
    llm = LLM(str(write_tiny_model(tmp_path, template=template)))
    with pytest.raises(InvalidRequestError, match="thinking_temperature: needs a chat template that marks"):
        llm.generate("Hi", SamplingParams(thinking_temperature=0.5))


def test_the_command_line_has_it(opened: LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(tmp_path, TEMPLATE.replace("assistant\n", "assistant\n<think>\n") + MARKED)
    tokens = []
    for temperatures in (["--thinking-temperature", "1.3"], ["--temperature", "1.3"]):
        command = ["generate", str(tmp_path), "-p", "Hi", "--seed", "5", "-n", "12", "--ignore-eos", "--json"]
        assert run([*command, *temperatures]) == 0
        tokens.append(json.loads(capsys.readouterr().out)["token_ids"])
    assert tokens[0] == tokens[1]
