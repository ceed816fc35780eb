"""The whole way on a tiny model: batched = alone, chunked = whole, cached = cold, generating = reading anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from puna.entrypoints import loading
from puna.entrypoints.llm import LLM
from puna.entrypoints.outputs import CompletionOutput
from puna.errors import InsufficientMemoryError, InvalidRequestError, UnsupportedModelError
from puna.pipelines.batch import FinishReason
from puna.pipelines.kv_cache import MachineMemory
from puna.pipelines.request import GenerateRequest
from puna.pipelines.sampling_params import SamplingParams
from support.answers import answers, growth
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
    defaults = {"temperature": 0.9, "seed": 7, "max_tokens": 20, "ignore_eos": True}
    return GenerateRequest(text=text, sampling_params=SamplingParams(**(defaults | params)))


def requests() -> list[GenerateRequest]:
    return [request(text, seed=seed, temperature=temperature)
            for seed, (text, temperature) in enumerate(zip(PROMPTS, (0, 0.7, 1.0, 1.5), strict=True))]  # fmt: skip


def tokens(generations: list[CompletionOutput]) -> list[tuple[int, ...]]:
    return [generation.token_ids for generation in generations]


@pytest.fixture(scope="module")
def alone(model: str) -> list[tuple[int, ...]]:
    llm = LLM(model, enable_prefix_caching=False)
    return [answers(llm, [item])[0].token_ids for item in requests()]


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_seqs": 4},
        {"max_num_seqs": 3, "block_size": 1, "threads": 1},
        {"max_num_seqs": 2, "block_size": 17, "threads": 2},
    ],
)
def test_batched_is_alone(model: str, alone: list[tuple[int, ...]], options: dict[str, int]) -> None:
    assert tokens(answers(LLM(model, **options), requests())) == alone


def test_chunked_is_whole(model: str, alone: list[tuple[int, ...]]) -> None:
    assert tokens(answers(LLM(model, max_num_seqs=4, max_num_batched_tokens=5), requests())) == alone


def test_several_passes_a_turn_are_single_steps(model: str, alone: list[tuple[int, ...]]) -> None:
    assert tokens(answers(LLM(model, max_num_seqs=4, max_num_steps=3), requests())) == alone


def test_cached_is_cold(model: str, alone: list[tuple[int, ...]]) -> None:
    llm = LLM(model, block_size=4)
    first, second = (llm.answer_requests([requests()[1]])[0] for _ in range(2))
    assert first.outputs[0].token_ids == second.outputs[0].token_ids == alone[1]
    assert first.num_cached_tokens == 0 and second.num_cached_tokens >= 4 * 4


def test_stream_is_generate(model: str) -> None:
    llm = LLM(model)
    (whole,) = answers(llm, [request(PROMPTS[1])])
    deltas = list(growth(llm, request(PROMPTS[1])))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert sum((delta.tokens for delta in deltas), ()) == whole.token_ids
    assert [delta.finish_reason for delta in deltas][-1] is whole.finish_reason is FinishReason.LENGTH
    assert whole.text == llm.tokenizer.decode([*llm.tokenize(PROMPTS[1]), *whole.token_ids])[len(PROMPTS[1]) :]


def test_streams_that_are_read_in_turn_do_not_lose_tokens(model: str) -> None:
    llm = LLM(model, max_num_seqs=3)
    asked = requests()
    alone = [answers(llm, [item])[0].token_ids for item in asked]
    streams = [growth(llm, item) for item in asked[:2]]
    found: list[tuple[int, ...]] = [next(stream).tokens for stream in streams]
    (third,) = answers(llm, [asked[2]])  # two more requests are under way, and one of them waits for its reader
    for index in (1, 0):
        found[index] += sum((delta.tokens for delta in streams[index]), ())
    assert [*found, third.token_ids] == alone[:3]


def test_stream_that_is_dropped_ends_its_request(model: str) -> None:
    llm = LLM(model)
    stream = growth(llm, request("Hello", max_tokens=None))
    next(stream)
    stream.close()
    assert not llm.pipeline.has_work
    assert answers(llm, [request("Hello")])[0].token_ids == answers(llm, [request("Hello")])[0].token_ids


def test_log_probabilities_come_with_tokens(model: str) -> None:
    llm = LLM(model)
    (output,) = llm.generate("Hello", SamplingParams(temperature=0, max_tokens=4, logprobs=2))
    (made,) = output.outputs
    assert made.logprobs is not None and len(made.logprobs) == 4
    for position, token in zip(made.logprobs, made.token_ids, strict=True):
        assert len(position) == 2 and next(iter(position)) == token
        assert [entry.rank for entry in position.values()] == [1, 2]
        assert position[token].decoded_token == llm.detokenize([token], skip_special_tokens=False)


def test_tokens_without_text(model: str) -> None:
    llm = LLM(model)
    with_text, without = (answers(llm, [request("Hello", detokenize=wanted)])[0] for wanted in (True, False))
    assert without.token_ids == with_text.token_ids and with_text.text and without.text == ""


def test_end_of_sequence_and_stop_tokens(model: str) -> None:
    llm = LLM(model)
    (whole,) = answers(llm, [request("Hello")])
    third = whole.token_ids[2]
    (cut,) = answers(llm, [request("Hello", ignore_eos=False, stop_token_ids=(third,))])
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
    llm = LLM(path, enable_prefix_caching=False)
    (whole,) = answers(llm, [request("Hello, world", temperature=0, max_tokens=50)])
    prompt = llm.tokenize("Hello, world")
    sequence = [*prompt, *whole.token_ids]
    begin = len(prompt)
    assert begin < 32 < len(sequence)
    for end in (begin, 30, 31, 32, 33, 34, len(sequence) - 1):
        asked = GenerateRequest(
            token_ids=sequence[:end], sampling_params=SamplingParams(temperature=0, max_tokens=1)
        )
        assert answers(llm, [asked])[0].token_ids == (sequence[end],)


def test_memory_limits_the_context_and_says_so(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_per_token = 2 * 2 * 2 * 16 * 2
    memory = MachineMemory(1 << 30, int(bytes_per_token * 16 * 6.5 / 0.9))
    monkeypatch.setattr(loading, "machine_memory", lambda: memory)
    monkeypatch.setattr(loading, "_require_room_for_weights", lambda needed: None)
    llm = LLM(model, block_size=16)
    assert llm.max_model_len == 16 * 5
    assert llm.notices == ("memory holds a context of 80 tokens, the model would take 256",)
    with pytest.raises(InsufficientMemoryError, match="KV cache for 200 tokens"):
        LLM(model, block_size=16, max_model_len=200)


def test_weights_that_cannot_fit_are_refused_before_loading(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "machine_memory", lambda: MachineMemory(1 << 30, 1000))
    with pytest.raises(InsufficientMemoryError, match="the model's weights"):
        LLM(model)


def test_requests_that_cannot_be_answered(model: str, tmp_path: Path) -> None:
    llm = LLM(str(write_tiny_model(tmp_path, template=None)))
    with pytest.raises(UnsupportedModelError, match="chat template"):
        answers(llm, [GenerateRequest(messages=[{"role": "user", "content": "x"}])])
    with pytest.raises(InvalidRequestError, match="outside the vocabulary"):
        answers(llm, [GenerateRequest(token_ids=[1, 900])])
    with pytest.raises(InvalidRequestError, match="is not loaded"):
        answers(llm, [GenerateRequest(text="x", model_name="other")])
    assert answers(llm, [request("still there")])[0].token_ids
