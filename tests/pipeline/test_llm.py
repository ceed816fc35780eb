"""The whole way on a tiny model: batched = alone, chunked = whole, cached = cold, generating = reading anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from puna.entrypoints import llm as llm_module
from puna.entrypoints.llm import LLM, Generation, LoadOptions
from puna.errors import InsufficientMemoryError, InvalidRequestError, UnsupportedModelError
from puna.pipelines.batch import FinishReason
from puna.pipelines.kv_cache import MachineMemory
from puna.pipelines.request import GenerateRequest, SamplingParams
from support.tiny_model import write_tiny_model

PROMPTS = [
    "Hello",
    "The quick brown fox jumps over the lazy dog. " * 3,
    "Größe und Straße",
    "a b c d e f g h i j k l m",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny")))


def request(text: str, **params: Any) -> GenerateRequest:
    defaults = {"temperature": 0.9, "seed": 7, "max_new_tokens": 20, "ignore_eos": True}
    return GenerateRequest(text=text, sampling_params=SamplingParams(**(defaults | params)))


def requests() -> list[GenerateRequest]:
    return [request(text, seed=seed, temperature=temperature)
            for seed, (text, temperature) in enumerate(zip(PROMPTS, (0, 0.7, 1.0, 1.5), strict=True))]  # fmt: skip


def tokens(generations: list[Generation]) -> list[tuple[int, ...]]:
    return [generation.token_ids for generation in generations]


@pytest.fixture(scope="module")
def alone(model: str) -> list[tuple[int, ...]]:
    llm = LLM(model, LoadOptions(use_prefix_cache=False))
    return [llm.generate([item])[0].token_ids for item in requests()]


@pytest.mark.parametrize(
    "options",
    [
        LoadOptions(max_batch_size=4),
        LoadOptions(max_batch_size=3, page_size=1, num_threads=1),
        LoadOptions(max_batch_size=2, page_size=17, num_threads=2),
    ],
)
def test_batched_is_alone(model: str, alone: list[tuple[int, ...]], options: LoadOptions) -> None:
    assert tokens(LLM(model, options).generate(requests())) == alone


def test_chunked_is_whole(model: str, alone: list[tuple[int, ...]]) -> None:
    assert tokens(LLM(model, LoadOptions(max_batch_size=4, max_step_tokens=5)).generate(requests())) == alone


def test_several_passes_a_turn_are_single_steps(model: str, alone: list[tuple[int, ...]]) -> None:
    assert tokens(LLM(model, LoadOptions(max_batch_size=4, max_num_steps=3)).generate(requests())) == alone


def test_cached_is_cold(model: str, alone: list[tuple[int, ...]]) -> None:
    llm = LLM(model, LoadOptions(page_size=4))
    first, second = (llm.generate([requests()[1]])[0] for _ in range(2))
    assert first.token_ids == second.token_ids == alone[1]
    assert first.num_cached_tokens == 0 and second.num_cached_tokens >= 4 * 4


def test_stream_is_generate(model: str) -> None:
    llm = LLM(model)
    (whole,) = llm.generate([request(PROMPTS[1])])
    deltas = list(llm.stream(request(PROMPTS[1])))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert sum((delta.tokens for delta in deltas), ()) == whole.token_ids
    assert [delta.finish_reason for delta in deltas][-1] is whole.finish_reason is FinishReason.LENGTH
    assert whole.text == llm.tokenizer.decode([*whole.prompt_token_ids, *whole.token_ids])[len(PROMPTS[1]) :]


def test_streams_that_are_read_in_turn_do_not_lose_tokens(model: str) -> None:
    llm = LLM(model, LoadOptions(max_batch_size=3))
    asked = requests()
    alone = [llm.generate([item])[0].token_ids for item in asked]
    streams = [llm.stream(item) for item in asked[:2]]
    found: list[tuple[int, ...]] = [next(stream).tokens for stream in streams]
    (third,) = llm.generate([asked[2]])  # two more requests are under way, and one of them waits for its reader
    for index in (1, 0):
        found[index] += sum((delta.tokens for delta in streams[index]), ())
    assert [*found, third.token_ids] == alone[:3]


def test_stream_that_is_dropped_ends_its_request(model: str) -> None:
    llm = LLM(model)
    stream = llm.stream(request("Hello", max_new_tokens=None))
    next(stream)
    stream.close()
    assert not llm._pipeline.has_work
    assert llm.generate([request("Hello")])[0].token_ids == llm.generate([request("Hello")])[0].token_ids


def test_log_probabilities_come_with_tokens(model: str) -> None:
    llm = LLM(model)
    asked = GenerateRequest(text="Hello", logprobs=2, sampling_params=SamplingParams(temperature=0, max_new_tokens=4))
    deltas = list(llm.stream(asked))
    for delta in deltas:
        (record,) = delta.log_probabilities
        (best,) = record.top_log_probabilities
        assert len(best) == 2 and next(iter(best)) == delta.tokens[0]
        assert record.token_log_probabilities == [best[delta.tokens[0]]]


def test_tokens_without_text(model: str) -> None:
    llm = LLM(model)
    with_text, without = (llm.generate([request("Hello", detokenize=wanted)])[0] for wanted in (True, False))
    assert without.token_ids == with_text.token_ids and with_text.text and without.text == ""


def test_end_of_sequence_and_stop_tokens(model: str) -> None:
    llm = LLM(model)
    (whole,) = llm.generate([request("Hello")])
    third = whole.token_ids[2]
    (cut,) = llm.generate([request("Hello", ignore_eos=False, stop_token_ids=(third,))])
    assert cut.token_ids == whole.token_ids[: whole.token_ids.index(third) + 1]
    assert cut.finish_reason is FinishReason.STOP


LONGROPE = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
}


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [3.0] * 8,
         "original_max_position_embeddings": 32},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 32},
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32},
        {"rope_type": "linear", "factor": 4.0},
    ],
    ids=lambda scaling: str(scaling["rope_type"]),
)  # fmt: skip
def test_generating_is_reading_anew(tmp_path: Path, scaling: dict[str, Any]) -> None:
    """Past the original length too, each token is the one that reading all tokens before it afresh gives."""
    path = str(write_tiny_model(tmp_path, rope_scaling=scaling))
    llm = LLM(path, LoadOptions(use_prefix_cache=False))
    (whole,) = llm.generate([request("Hello, world", temperature=0, max_new_tokens=50)])
    sequence = [*whole.prompt_token_ids, *whole.token_ids]
    begin = len(whole.prompt_token_ids)
    assert begin < 32 < len(sequence)
    for end in (begin, 30, 31, 32, 33, 34, len(sequence) - 1):
        asked = GenerateRequest(
            token_ids=sequence[:end], sampling_params=SamplingParams(temperature=0, max_new_tokens=1)
        )
        assert llm.generate([asked])[0].token_ids == (sequence[end],)


def test_memory_limits_the_context_and_says_so(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_per_token = 2 * 2 * 2 * 16 * 2
    memory = MachineMemory(1 << 30, int(bytes_per_token * 16 * 6.5 / 0.9))
    monkeypatch.setattr(llm_module, "machine_memory", lambda: memory)
    monkeypatch.setattr(llm_module, "_require_room_for_weights", lambda needed: None)
    llm = LLM(model, LoadOptions(page_size=16))
    assert llm.max_length == 16 * 5
    assert llm.notices == ("memory holds a context of 80 tokens, the model would take 256",)
    with pytest.raises(InsufficientMemoryError, match="KV cache for 200 tokens"):
        LLM(model, LoadOptions(page_size=16, max_length=200))


def test_weights_that_cannot_fit_are_refused_before_loading(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_module, "machine_memory", lambda: MachineMemory(1 << 30, 1000))
    with pytest.raises(InsufficientMemoryError, match="the model's weights"):
        LLM(model)


def test_requests_that_cannot_be_answered(model: str, tmp_path: Path) -> None:
    llm = LLM(str(write_tiny_model(tmp_path, template=None)))
    with pytest.raises(UnsupportedModelError, match="chat template"):
        llm.generate([GenerateRequest(messages=[{"role": "user", "content": "x"}])])
    with pytest.raises(InvalidRequestError, match="outside the vocabulary"):
        llm.generate([GenerateRequest(token_ids=[1, 900])])
    with pytest.raises(InvalidRequestError, match="is not loaded"):
        llm.generate([GenerateRequest(text="x", model_name="other")])
    assert llm.generate([request("still there")])[0].token_ids
