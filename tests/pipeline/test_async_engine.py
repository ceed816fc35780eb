"""The engine's thread: many users at once, none of whom can stop it, fill it, or take another along."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import pytest

from puna.errors import EngineStoppedError, InvalidRequestError, QueueFullError, StepFailedError
from puna.pipelines.async_engine import AsyncEngine
from puna.pipelines.batch import FinishReason, GenerationDelta
from puna.pipelines.context import TextContext
from puna.pipelines.request import RequestID
from puna.pipelines.sampling import NonFiniteLogitsError
from puna.pipelines.sampling_params import SamplingParams
from puna.pipelines.scheduler import SchedulerLimits
from support.fake_loop import Rig, context, one_regime, prompts_of
from support.fake_model import expected_greedy

LIMITS = SchedulerLimits(max_batch_size=4, max_step_tokens=16)


class Gate:
    """Lets the model take a number of steps, and then waits to be told to go on."""

    def __init__(self, rig: Rig) -> None:
        self._permits = threading.Semaphore(0)
        self._is_open = False
        execute = rig.model.execute

        def gated(inputs: Any) -> Any:
            if not self._is_open:
                assert self._permits.acquire(timeout=20)
            return execute(inputs)

        rig.model.execute = gated  # type: ignore[method-assign]

    def let(self, steps: int) -> None:
        self._permits.release(steps)

    def open(self) -> None:
        self._is_open = True
        self._permits.release(1000)


@pytest.fixture
def rig() -> Rig:
    return Rig(num_blocks=256, limits=LIMITS, poison=60, explosive=-1)


@pytest.fixture
def engine(rig: Rig) -> Iterator[AsyncEngine]:
    with AsyncEngine(rig.pipeline, max_queue_size=64) as engine:
        yield engine
    assert engine.statistics().counts.num_running == 0
    rig.check()
    assert rig.kv.counts().used == 0


async def collect(engine: AsyncEngine, asked: TextContext) -> list[GenerationDelta]:
    return [delta async for delta in engine.generate(asked)]


def tokens_of(deltas: list[GenerationDelta], choice: int = 0) -> list[int]:
    return [token for delta in deltas if delta.choice == choice for token in delta.tokens]


def until(holds: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def test_many_requests_from_loops_and_threads(engine: AsyncEngine) -> None:
    prompts = prompts_of(1, 40)

    async def some(asked: list[list[int]]) -> list[list[int]]:
        found = await asyncio.gather(*(collect(engine, context(prompt, 12)) for prompt in asked))
        return [tokens_of(deltas) for deltas in found]

    def plain(prompt: list[int]) -> list[int]:
        return tokens_of(list(engine.submit(context(prompt, 12))))

    with ThreadPoolExecutor(12) as threads:
        loops = [threads.submit(asyncio.run, some(prompts[begin : begin + 10])) for begin in (0, 10)]
        plain_ones = [threads.submit(plain, prompt) for prompt in prompts[20:]]
        found = [tokens for future in loops for tokens in future.result(60)]
        found += [future.result(60) for future in plain_ones]
    assert found == [expected_greedy(prompt, 12, 50, one_regime) for prompt in prompts]
    statistics = engine.statistics()
    assert statistics.finished == {"length": 40} and statistics.num_streams == 0
    assert statistics.counts.num_generated_tokens == 480
    assert statistics.counts.num_prompt_tokens == sum(map(len, prompts))
    assert 0 < statistics.counts.num_cached_tokens < statistics.counts.num_prompt_tokens
    assert statistics.tokens_per_s > 0 and statistics.times.step_s >= statistics.times.model_s > 0


def test_continuations_come_on_one_stream(engine: AsyncEngine) -> None:
    params = SamplingParams(seed=3, temperature=1.5)
    deltas = list(engine.submit(context([1, 2, 3], 6, params, num_choices=3)))
    expected = Rig().run([request := context([1, 2, 3], 6, params, num_choices=3)])[request.request_id]
    assert [tokens_of(deltas, choice) for choice in range(3)] == [tokens_of(expected, choice) for choice in range(3)]
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == [FinishReason.LENGTH] * 3


def test_the_queue_has_an_end(rig: Rig) -> None:
    gate = Gate(rig)
    with AsyncEngine(rig.pipeline, max_queue_size=3) as engine:
        running = [engine.submit(context([number], 3)) for number in range(3)]
        gate.let(2)
        until(lambda: engine.statistics().counts.num_running == 3)
        waiting = [engine.submit(context([10 + number], 3)) for number in range(3)]
        with pytest.raises(QueueFullError, match="3 requests are waiting"):
            engine.submit(context([20], 3))
        gate.open()
        assert all(len(tokens_of(list(stream))) == 3 for stream in running + waiting)
        assert len(tokens_of(list(engine.submit(context([20], 3))))) == 3


def test_ends_that_nobody_fetches_count_until_their_streams_are_dropped(rig: Rig) -> None:
    with AsyncEngine(rig.pipeline, max_queue_size=2) as engine:
        streams = [engine.submit(context([number], 3)) for number in range(2)]
        until(lambda: engine.statistics().finished.get("length") == 2)
        with pytest.raises(QueueFullError):
            engine.submit(context([5], 1))
        assert len(tokens_of(list(streams.pop()))) == 3
        streams.append(engine.submit(context([5], 1)))
        until(lambda: engine.statistics().finished.get("length") == 3)
        streams.clear()
        gc.collect()
        until(lambda: engine.statistics().num_streams == 0)


def test_a_slow_consumer_gets_everything_in_one_piece_and_stops_nobody(engine: AsyncEngine) -> None:
    slow = engine.submit(context([1, 2], 40))
    assert tokens_of(list(engine.submit(context([3], 60)))) == expected_greedy([3], 60, 50, one_regime)
    until(lambda: not slow.open_choices)
    (delta,) = list(slow)
    assert list(delta.tokens) == expected_greedy([1, 2], 40, 50, one_regime)
    assert delta.finish_reason is FinishReason.LENGTH


def test_a_cancelled_task_ends_its_request(rig: Rig) -> None:
    gate = Gate(rig)

    async def run(engine: AsyncEngine) -> None:
        task = asyncio.create_task(collect(engine, context([1] * 10, 500)))
        other = asyncio.create_task(collect(engine, context([2], 5)))
        await asyncio.sleep(0.05)
        gate.let(2)
        await asyncio.to_thread(until, lambda: engine.statistics().counts.num_running == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open()
        assert tokens_of(await other) == expected_greedy([2], 5, 50, one_regime)

    with AsyncEngine(rig.pipeline) as engine:
        asyncio.run(run(engine))
        until(lambda: engine.statistics().counts.blocks.used == 0)
        assert engine.statistics().num_streams == 0


def test_a_generator_that_is_left_ends_its_request(engine: AsyncEngine) -> None:
    async def run() -> None:
        async with aclosing(engine.generate(context([1], 200))) as deltas:  # type: ignore[type-var]
            async for _delta in deltas:
                break

    asyncio.run(run())
    until(lambda: engine.statistics().counts.num_running == 0)


@pytest.mark.parametrize("when", ["queued", "reading", "generating"])
def test_an_abort_is_told_to_the_stream(rig: Rig, when: str) -> None:
    gate = Gate(rig)
    with AsyncEngine(rig.pipeline) as engine:
        others = [engine.submit(context([number], 50)) for number in range(4)] if when == "queued" else []
        stream = engine.submit(context([7] * 40, 10, num_choices=2))
        steps = {"queued": 2, "reading": 1, "generating": 6}[when]
        gate.let(steps)
        until(lambda: engine.statistics().times.num_steps == steps)
        engine.abort(stream.request_id)
        gate.open()
        deltas = list(stream)
        ends = [(delta.choice, delta.finish_reason) for delta in deltas if delta.finish_reason is not None]
        assert ends == [(0, FinishReason.ABORT), (1, FinishReason.ABORT)]
        assert any(delta.tokens for delta in deltas) == (when == "generating")
        for other in others:
            other.close()
        assert engine.drain(10)
        assert engine.statistics().counts.blocks.used == 0


def test_drain_finishes_what_is_there_and_refuses_more(rig: Rig) -> None:
    with AsyncEngine(rig.pipeline) as engine:
        streams = [engine.submit(context([number], 20)) for number in range(10)]
        assert engine.drain(20)
        with pytest.raises(EngineStoppedError, match="the engine drains"):
            engine.submit(context([1]))
        assert all(len(tokens_of(list(stream))) == 20 for stream in streams)
    with pytest.raises(EngineStoppedError, match="was shut down"):
        engine.submit(context([1]))


def test_drain_gives_up_after_a_while(rig: Rig) -> None:
    gate = Gate(rig)
    with AsyncEngine(rig.pipeline) as engine:
        engine.submit(context([1], 5))
        stream = engine.submit(context([2], 5))
        assert not engine.drain(0.05)
        gate.open()
        assert len(tokens_of(list(stream))) == 5


def test_shutdown_ends_what_runs_and_what_waits(rig: Rig) -> None:
    gate = Gate(rig)
    engine = AsyncEngine(rig.pipeline)
    streams = [engine.submit(context([number], 100)) for number in range(8)]
    threading.Timer(0.1, gate.open).start()
    engine.shutdown()
    assert all(list(stream)[-1].finish_reason is FinishReason.ABORT for stream in streams)
    assert not rig.pipeline.has_work and rig.kv.counts().used == 0
    engine.shutdown()  # a second time is harmless


def test_a_failing_request_takes_nobody_along(engine: AsyncEngine) -> None:
    bad, good = engine.submit(context([1, 60], 5)), engine.submit(context([2], 5))
    (end,) = list(bad)
    assert end.finish_reason is FinishReason.ERROR and isinstance(end.error, NonFiniteLogitsError)
    assert tokens_of(list(good)) == expected_greedy([2], 5, 50, one_regime)


def test_a_mistake_of_the_loop_itself_is_survived(
    rig: Rig, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = rig.scheduler.schedule

    def broken() -> Any:
        rig.scheduler.schedule = schedule  # type: ignore[method-assign]
        raise ZeroDivisionError("a mistake")

    rig.scheduler.schedule = broken  # type: ignore[method-assign]
    with caplog.at_level(logging.ERROR):
        (end,) = list(engine.submit(context([1], 5)))
    assert isinstance(end.error, StepFailedError) and "outside the model" in caplog.text
    assert tokens_of(list(engine.submit(context([1], 5)))) == expected_greedy([1], 5, 50, one_regime)


def test_bad_requests_are_refused_at_once(engine: AsyncEngine) -> None:
    with pytest.raises(InvalidRequestError, match="more than the KV cache holds"):
        engine.submit(context([1] * 2000))
    stream = engine.submit(context([1], 200, request_id=RequestID("a")))
    with pytest.raises(InvalidRequestError, match="a is taken"):
        engine.submit(context([1], request_id=RequestID("a")))
    stream.close()
    assert len(tokens_of(list(engine.submit(context([1], 3, request_id=RequestID("a")))))) == 3
    with pytest.raises(ValueError, match="max_queue_size"):
        AsyncEngine(Rig().pipeline, max_queue_size=0)


@pytest.mark.parametrize("way", ["close", "drop"])
def test_a_name_may_be_used_again_at_once(rig: Rig, way: str) -> None:
    name = RequestID("a")
    with AsyncEngine(rig.pipeline) as engine:
        for number in range(20):
            stream = engine.submit(context([number % 50], 60, request_id=name))
            if number % 3 == 0:
                next(stream)
            if way == "close":
                stream.close()
            else:
                del stream
                until(lambda: engine.statistics().num_streams == 0)
            found = tokens_of(list(engine.submit(context([number % 50, 1], 4, request_id=name))))
            assert found == expected_greedy([number % 50, 1], 4, 50, one_regime)


def test_a_consumer_whose_loop_was_closed_is_given_up(rig: Rig) -> None:
    gate = Gate(rig)
    with AsyncEngine(rig.pipeline) as engine:
        stream = engine.submit(context([1], 300))
        loop = asyncio.new_event_loop()
        task = loop.create_task(stream.__anext__())  # type: ignore[arg-type]
        loop.run_until_complete(asyncio.sleep(0))
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()
        gate.open()
        until(lambda: engine.statistics().num_streams == 0)
        until(lambda: engine.statistics().counts.num_running == 0)


def test_memory_stays_flat(engine: AsyncEngine) -> None:
    for _ in range(200):
        list(engine.submit(context([1, 2, 3], 2)))
    assert not engine._streams and not engine._unread
    assert not engine._pipeline.has_work
