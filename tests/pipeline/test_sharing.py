"""One process, several users: streams in turn, threads, models side by side, forks."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from puna.entrypoints.fair_lock import FairLock
from puna.entrypoints.llm import LLM
from puna.errors import InvalidRequestError
from puna.pipelines.batch import FinishReason
from puna.pipelines.request import GenerateRequest
from puna.pipelines.sampling_params import SamplingParams
from support.answers import answers, growth
from support.tiny_model import write_tiny_model

PROMPTS = ["Hello", "The quick brown fox", "Größe und Straße", "a b c d e f", "x", "Hello there " * 5]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny")))


def request(text: str, **params: Any) -> GenerateRequest:
    defaults = {"temperature": 0.9, "seed": len(text), "max_tokens": 30, "ignore_eos": True}
    return GenerateRequest(text=text, sampling_params=SamplingParams(**(defaults | params)))


@pytest.fixture(scope="module")
def alone(path: str) -> dict[str, tuple[int, ...]]:
    llm = LLM(path, enable_prefix_caching=False)
    return {text: answers(llm, [request(text)])[0].token_ids for text in PROMPTS}


def streamed(llm: LLM, text: str) -> tuple[int, ...]:
    return sum((delta.tokens for delta in growth(llm, request(text))), ())


@pytest.mark.parametrize("batch", [1, 3])
def test_threads_share_a_model(path: str, alone: dict[str, tuple[int, ...]], batch: int) -> None:
    llm = LLM(path, max_num_seqs=batch, block_size=4)
    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        streams = [threads.submit(streamed, llm, text) for text in PROMPTS]
        batches = [threads.submit(answers, llm, [request(text) for text in PROMPTS[:3]]) for _ in range(2)]
        assert [stream.result(60) for stream in streams] == [alone[text] for text in PROMPTS]
        for future in batches:
            assert [item.token_ids for item in future.result(60)] == [alone[text] for text in PROMPTS[:3]]
    assert not llm.pipeline.has_work


def test_models_side_by_side_share_the_threads(path: str, alone: dict[str, tuple[int, ...]]) -> None:
    models = [LLM(path, threads=count) for count in (1, 2, 5)]
    before = threading.active_count(), _num_tasks()
    with ThreadPoolExecutor(len(models)) as threads:
        for _ in range(3):
            futures = [threads.submit(streamed, model, text) for model in models for text in PROMPTS[:2]]
            found = [future.result(60) for future in futures]
            assert found == [alone[text] for _model in models for text in PROMPTS[:2]]
        assert _num_tasks() - before[1] <= len(models) + 4  # these threads, and the one pool's at most


def _num_tasks() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_streams_that_stay_open_end_with_their_own_tokens(path: str, alone: dict[str, tuple[int, ...]]) -> None:
    llm = LLM(path, max_num_seqs=2)
    streams = {text: growth(llm, request(text)) for text in PROMPTS}
    found: dict[str, tuple[int, ...]] = dict.fromkeys(PROMPTS, ())
    while streams:
        for text, stream in list(streams.items()):
            delta = next(stream, None)
            if delta is None:
                del streams[text]
            else:
                found[text] += delta.tokens
    assert found == alone


def test_a_stop_string_and_a_dropped_stream_leave_the_others(path: str, alone: dict[str, tuple[int, ...]]) -> None:
    llm = LLM(path, max_num_seqs=3)
    (whole,) = answers(llm, [request(PROMPTS[1])])
    stop = whole.text[4:6]
    stopping, dropped = growth(llm, request(PROMPTS[1], stop=(stop,))), growth(llm, request(PROMPTS[2]))
    next(dropped)
    first = next(stopping)
    (other,) = answers(llm, [request(PROMPTS[0])])
    dropped.close()
    text = first.text + "".join(delta.text for delta in stopping)
    assert text == whole.text[: whole.text.index(stop)]
    assert other.token_ids == alone[PROMPTS[0]]
    assert not llm.pipeline.has_work


def test_a_request_that_is_refused_takes_no_other_along(path: str, alone: dict[str, tuple[int, ...]]) -> None:
    llm = LLM(path, max_num_seqs=2)
    stream = growth(llm, request(PROMPTS[0]))
    tokens = next(stream).tokens
    with pytest.raises(InvalidRequestError, match="tokens"):
        answers(llm, [request(PROMPTS[1]), request("x " * 400)])
    with pytest.raises(InvalidRequestError, match="is taken"):
        twice = request(PROMPTS[1])
        answers(llm, [twice, twice])
    assert tokens + sum((delta.tokens for delta in stream), ()) == alone[PROMPTS[0]]
    assert not llm.pipeline.has_work


def test_end_tokens_outside_the_vocabulary_are_harmless(path: str) -> None:
    llm = LLM(path)
    asked = request("Hello", stop_token_ids=(10**30, 5_000), min_tokens=3, ignore_eos=False)
    (generation,) = answers(llm, [asked])
    assert generation.error is None and generation.finish_reason is FinishReason.LENGTH


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_and_the_parent_goes_on(path: str, alone: dict[str, tuple[int, ...]]) -> None:
    llm = LLM(path, threads=2)
    assert streamed(llm, PROMPTS[0]) == alone[PROMPTS[0]]
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_generate_in_child, args=(llm, there))
    child.start()
    there.close()
    assert here.poll(30), "the child hangs"
    kind, message = here.recv()
    child.join(30)
    assert kind == "StepFailedError" and "this process was forked" in message
    assert streamed(llm, PROMPTS[1]) == alone[PROMPTS[1]]


def _generate_in_child(llm: LLM, answer: Connection) -> None:
    (generation,) = answers(llm, [request(PROMPTS[0])])
    answer.send((type(generation.error).__name__, str(generation.error)))
    answer.close()
    os._exit(0)


class TestFairLock:
    def test_it_goes_to_whoever_waits_longest(self) -> None:
        lock, order = FairLock(), []

        def take(name: int) -> None:
            with lock:
                order.append(name)

        threads = []
        with lock:
            for name in range(5):
                threads.append(threading.Thread(target=take, args=(name,)))
                threads[-1].start()
                while len(lock._waiting) <= name:
                    time.sleep(0.001)
        for thread in threads:
            thread.join(10)
        assert order == list(range(5))

    def test_one_at_a_time(self) -> None:
        lock, inside, most = FairLock(), [0], [0]

        def work() -> None:
            for _ in range(300):
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    inside[0] -= 1

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            with ThreadPoolExecutor(4) as threads:
                for future in [threads.submit(work) for _ in range(4)]:
                    future.result(30)
        finally:
            sys.setswitchinterval(interval)
        assert most == [1] and not lock._waiting

    def test_an_error_inside_gives_it_back(self) -> None:
        lock = FairLock()
        with pytest.raises(ZeroDivisionError), lock:
            raise ZeroDivisionError
        with lock:
            pass
