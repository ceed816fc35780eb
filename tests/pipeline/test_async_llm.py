"""`AsyncLLM`: the same answers as `LLM`, from coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from puna import LLM, AsyncLLM, RequestOutput, SamplingParams
from puna.errors import EngineStoppedError, InvalidRequestError, QueueFullError
from support.tiny_model import write_tiny_model

PROMPTS = ["Hello", "The quick brown fox", "Größe und Straße", "a b c d e f"]
PARAMS = [SamplingParams(max_tokens=12, seed=seed, n=1 + seed % 2, ignore_eos=True) for seed in range(4)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny")))


async def last(outputs: AsyncGenerator[RequestOutput]) -> RequestOutput:
    found = [output async for output in outputs]
    assert found[-1].finished and not any(output.finished for output in found[:-1])
    return found[-1]


def test_answers_are_those_of_an_llm(path: str) -> None:
    async def run() -> list[RequestOutput]:
        async with AsyncLLM(path, max_num_seqs=3, block_size=4) as llm:
            return await asyncio.gather(*(last(llm.generate(p, v)) for p, v in zip(PROMPTS, PARAMS, strict=True)))

    expected = LLM(path).generate(PROMPTS, PARAMS)
    for found, wanted in zip(asyncio.run(run()), expected, strict=True):
        assert found.outputs == wanted.outputs
        assert (found.prompt_token_ids, found.seed) == (wanted.prompt_token_ids, wanted.seed)


def test_conversations_and_stop_strings(path: str) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    values: dict[str, Any] = {"max_tokens": 20, "seed": 3, "n": 2, "ignore_eos": True}
    (whole,) = LLM(path).chat(messages, SamplingParams(**values))
    stop = whole.outputs[0].text[3:5]

    async def run() -> RequestOutput:
        async with AsyncLLM(path) as llm:
            return await last(llm.chat(messages, SamplingParams(stop=stop, **values)))

    found = asyncio.run(run())
    for made, free in zip(found.outputs, whole.outputs, strict=True):
        end = free.text.find(stop)
        assert made.text == (free.text if end < 0 else free.text[:end])
    assert found.outputs[0].finish_reason == "stop"


def test_a_closed_stream_and_an_abort_end_a_request(path: str) -> None:
    async def run() -> None:
        long = SamplingParams(temperature=0, ignore_eos=True)
        async with AsyncLLM(path, max_model_len=250) as llm:
            async with aclosing(llm.generate("Hello", long)) as outputs:
                await anext(outputs)
            assert await llm.drain(10)
        async with AsyncLLM(path, max_model_len=250) as llm:
            reason = None
            async for output in llm.generate("Hello", long, request_id="mine"):
                if reason is None and not output.finished:
                    llm.abort("mine")
                reason = output.outputs[0].finish_reason
            assert reason == "abort" and len(output.outputs[0].token_ids) < 240
            assert llm.statistics().finished == {"abort": 1}

    asyncio.run(run())


def test_what_is_refused(path: str) -> None:
    async def run() -> None:
        llm = AsyncLLM(path, max_queue_size=1)
        with pytest.raises(InvalidRequestError, match="more than the context of 256 tokens"):
            await last(llm.generate([5] * 300))
        stream = llm.generate("a", SamplingParams(temperature=0, ignore_eos=True))
        await anext(stream)
        others = [llm.generate(str(number), SamplingParams(max_tokens=2)) for number in range(40)]
        with pytest.raises(QueueFullError):
            await asyncio.gather(*(anext(other) for other in others))
        await llm.close()
        with pytest.raises(EngineStoppedError):
            await last(llm.generate("x"))

    asyncio.run(run())
