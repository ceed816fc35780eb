"""Grammars in the loop: the same tokens alone and in a crowd, and ends that the grammar decides."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from puna.entrypoints.async_llm import AsyncLLM
from puna.entrypoints.llm import LLM
from puna.entrypoints.outputs import CompletionOutput
from puna.errors import InvalidRequestError
from puna.pipelines.batch import FinishReason
from puna.pipelines.request import GenerateRequest
from puna.pipelines.sampling_params import SamplingParams
from puna.structured_output import StructuredOutputsParams
from support.answers import answers
from support.tiny_model import write_tiny_model

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "größe"]}, "maxItems": 2},
        "n": {"type": "integer", "minimum": -5, "maximum": 50},
    },
    "required": ["name", "n"],
    "additionalProperties": False,
}
STRUCTURES: list[dict[str, Any]] = [
    {"json": SCHEMA, "disable_any_whitespace": True},
    {"json": SCHEMA, "whitespace_pattern": " "},
    {"regex": "[a-f]{3,6}-[0-9]{2}"},
    {"choice": ["Hello, world", "Hello, moon", "nobody"]},
    {"grammar": 'start: "<" /[a-z ]{2,8}/ ">"'},
]


def request(structure: dict[str, Any] | None, text: str = "Hello", **params: Any) -> GenerateRequest:
    outputs = None if structure is None else StructuredOutputsParams(**structure)
    values: dict[str, Any] = {"temperature": 1.2, "seed": 5, "max_tokens": 100, "structured_outputs": outputs}
    return GenerateRequest(text=text, sampling_params=SamplingParams(**(values | params)))


def requests() -> list[GenerateRequest]:
    """Those with a grammar among others without one."""
    found = []
    for number, structure in enumerate(STRUCTURES):
        found.append(request(structure, f"Number {number}: " * (number + 1), seed=number))
        found.append(request(None, f"Free {number}", seed=number, max_tokens=12, ignore_eos=True))
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def llm(model: str) -> LLM:
    return LLM(model)


@pytest.fixture(scope="module")
def alone(model: str) -> list[CompletionOutput]:
    lonely = LLM(model, enable_prefix_caching=False, max_num_seqs=1)
    return [answers(lonely, [item])[0] for item in requests()]


def test_each_text_follows_its_grammar(alone: list[CompletionOutput]) -> None:
    for output in alone[:4:2]:
        assert output.finish_reason is FinishReason.STOP
        jsonschema.validate(json.loads(output.text), SCHEMA)
    assert alone[6].text in STRUCTURES[3]["choice"]
    assert alone[8].text[0] == "<" and alone[8].text[-1] == ">"


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_seqs": 16},
        {"max_num_seqs": 16, "max_num_batched_tokens": 16, "block_size": 4},
        {"max_num_seqs": 5, "max_num_steps": 4, "threads": 1},
        {"max_num_seqs": 10, "block_size": 4, "kv_cache_memory": 38_000},
        {"max_num_seqs": 4, "data_parallel_degree": 2},
    ],
)
def test_crowd_is_alone(model: str, alone: list[CompletionOutput], options: dict[str, int]) -> None:
    crowd = LLM(model, **options)  # type: ignore[arg-type]
    for _ in range(2):  # the second time prompts are cached
        found = answers(crowd, requests())
        assert [(o.text, o.token_ids, o.finish_reason) for o in found] == [
            (o.text, o.token_ids, o.finish_reason) for o in alone
        ]
    if "kv_cache_memory" in options:
        assert crowd.pipeline.counts().num_preemptions > 0


def test_continuations_of_one_prompt_have_their_own_places(llm: LLM) -> None:
    (output,) = llm.answer_requests([request(STRUCTURES[0], n=4)])
    assert len({choice.token_ids for choice in output.outputs}) > 1
    for choice in output.outputs:
        jsonschema.validate(json.loads(choice.text), SCHEMA)
    single = answers(llm, [request(STRUCTURES[0])])[0]
    assert output.outputs[0].token_ids == single.token_ids


def test_unconstrained_request_has_the_same_bits_beside_a_grammar(llm: LLM) -> None:
    free = request(None, max_tokens=20, logprobs=3, ignore_eos=True)
    by_itself = answers(llm, [free])[0]
    beside = answers(llm, [request(STRUCTURES[0]), request(None, max_tokens=20, logprobs=3, ignore_eos=True)])[1]
    assert beside == by_itself


def test_length_may_cut_a_text(llm: LLM) -> None:
    output = answers(llm, [request(STRUCTURES[0], max_tokens=3)])[0]
    assert output.finish_reason is FinishReason.LENGTH and len(output.token_ids) == 3


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"ignore_eos": True}, "ignore_eos"),
        ({"stop": ["a"]}, "stop"),
        ({"stop_token_ids": [70]}, "stop_token_ids"),
    ],
)
def test_what_would_end_a_text_elsewhere_is_refused(llm: LLM, params: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{param}: "):
        answers(llm, [request(STRUCTURES[0], **params)])


def test_stop_strings_may_end_text_around_tags(llm: LLM) -> None:
    tag = {"structures": [{"begin": "<f>", "schema": {}, "end": "</f>"}], "triggers": ["<f>"]}
    output = answers(llm, [request({"structural_tag": tag}, stop=["e"], max_tokens=60)])[0]
    assert output.finish_reason in (FinishReason.STOP, FinishReason.LENGTH) and "e" not in output.text


def test_control_token_may_end_a_text_where_the_grammar_lets_it(llm: LLM) -> None:
    output = answers(llm, [request({"regex": "a{2,9}"}, stop_token_ids=[1], banned_token_ids=[2])])[0]
    assert output.finish_reason is FinishReason.STOP and output.token_ids[-1] == 1
    assert len(output.text) >= 2 and set(output.text) == {"a"}


def test_minimum_holds_as_long_as_the_grammar_goes_on(llm: LLM) -> None:
    output = answers(llm, [request({"regex": "[ab]{1,40}"}, min_tokens=12)])[0]
    assert len(output.token_ids) >= 12 and output.error is None
    dead = answers(llm, [request({"choice": ["x"]}, min_tokens=12)])[0]
    assert dead.finish_reason is FinishReason.ERROR and "structured_outputs" in str(dead.error)


def test_bias_chooses_among_what_is_allowed_and_allows_nothing(llm: LLM) -> None:
    tokens = {text: llm.tokenize(text)[0] for text in ("a", "b", "z")}
    bias = {tokens["z"]: 100.0, tokens["b"]: 50.0}
    assert answers(llm, [request({"regex": "[ab]"}, logit_bias=bias)])[0].text == "b"
    only = answers(llm, [request({"regex": "[ab]"}, allowed_token_ids=[tokens["a"], 2])])[0]
    assert only.text == "a"
    none = answers(llm, [request({"regex": "[ab]"}, allowed_token_ids=[tokens["z"]]), request(STRUCTURES[3])])
    assert none[0].finish_reason is FinishReason.ERROR and none[1].error is None


def test_processed_probabilities_are_those_of_what_is_allowed(llm: LLM) -> None:
    output = answers(llm, [request({"regex": "[ab]"}, logprobs=5, logprobs_mode="processed")])[0]
    assert output.logprobs is not None
    likely = [entry.decoded_token for entry in output.logprobs[0].values() if entry.logprob > -50]
    assert sorted(likely) == ["a", "b"]


def test_async_engine_answers_under_grammars(model: str) -> None:
    async def run() -> str:
        async with AsyncLLM(model) as engine:
            text = ""
            async for output in engine.answer(request(STRUCTURES[0])):
                text = output.outputs[0].text
            with pytest.raises(InvalidRequestError, match="unclosed"):
                async for _ in engine.answer(request({"regex": "(a"})):
                    pass
            return text

    jsonschema.validate(json.loads(asyncio.run(run())), SCHEMA)


def test_threads_share_one_model(llm: LLM, alone: list[CompletionOutput]) -> None:
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        found[number] = answers(llm, [requests()[2 * number]])[0].text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(STRUCTURES))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: alone[2 * number].text for number in range(len(STRUCTURES))}


def test_file_of_a_path_names_what_is_wrong(tmp_path: Path) -> None:
    from puna.entrypoints.cli import run

    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(SCHEMA))
    bad.write_text('{"properties": {"a": {"not": {}}}}')
    assert run(["schema-check", str(good)]) == 0
    assert run(["schema-check", str(bad)]) == 2
    assert run(["schema-check", "--json", str(bad)]) == 2
    assert run(["schema-check", str(tmp_path / "none.json")]) == 2


def test_forced_tokens_are_jumped_over_and_stay_the_same(model: str) -> None:
    """A request that reports log-probabilities draws each token; others jump over those without a choice."""
    schema = {
        "type": "object",
        "properties": {f"a rather long name {i}": {"type": "integer", "minimum": 0, "maximum": 99} for i in range(4)},
        "required": [f"a rather long name {i}" for i in range(4)],
        "additionalProperties": False,
    }
    structure = {"json": schema, "disable_any_whitespace": True}
    steps, found = [], []
    for logprobs in (0, None):
        for options in ({}, {"max_num_batched_tokens": 5}, {"max_num_steps": 3}):
            llm = LLM(model, enable_prefix_caching=False, block_size=4, max_num_seqs=4, **options)  # type: ignore[arg-type]
            several = [request(structure, seed=seed, logprobs=logprobs, n=2, max_tokens=160) for seed in range(2)]
            outputs = [choice for output in llm.answer_requests(several) for choice in output.outputs]
            found.append([(o.text, o.token_ids, o.finish_reason) for o in outputs])
            steps.append(llm.pipeline.times.num_steps)
    assert all(item == found[0] for item in found)
    for text, _, reason in found[0]:
        assert reason is FinishReason.STOP
        jsonschema.validate(json.loads(text), schema)
    assert steps[3] < 0.7 * steps[0]


@pytest.mark.parametrize("max_tokens", [1, 2, 5, 9])
def test_jump_ends_at_the_length(llm: LLM, max_tokens: int) -> None:
    structure = {"choice": ["a rather long sentence without any choice", "a rather long sentence with one"]}
    drawn, jumped = (
        answers(llm, [request(structure, max_tokens=max_tokens, logprobs=logprobs)])[0] for logprobs in (0, None)
    )
    assert jumped.token_ids == drawn.token_ids and len(jumped.token_ids) == max_tokens
    assert jumped.finish_reason is drawn.finish_reason is FinishReason.LENGTH
