"""`AsyncEngine`: a thread that runs the loop, and streams of tokens for everybody who asks.

Requests come from any thread and any event loop. The engine's thread alone touches the pipeline; it is told what to do
through a queue, and tells what came of it through streams, for which it never waits.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, TypeAlias

from puna.errors import EngineStoppedError, InvalidRequestError, PunaError, QueueFullError, StepFailedError
from puna.pipelines.batch import FinishReason, GenerationDelta, LoopTimes, SchedulerCounts
from puna.pipelines.context import TextContext
from puna.pipelines.request import RequestID
from puna.pipelines.text_generation import TextGenerationPipeline
from puna.pipelines.token_stream import TokenStream, Waiter, wake_all

__all__ = ["AsyncEngine", "EngineStatistics", "TokenStream"]

_WINDOW_S: Final = 10.0
_log = logging.getLogger(__name__)

State: TypeAlias = Literal["runs", "drains", "was shut down", "died"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """What the engine did since it was started, and what is under way.

    Attributes:
        state: Whether it takes requests.
        num_streams: Requests whose end nobody fetched yet.
        num_waiting: Requests that wait to begin.
        finished: How many continuations ended, by reason (`stop`, `length`, `abort`, `error`).
        tokens_per_s: Generated tokens per second, over the last ten seconds.
        prompt_tokens_per_s: Tokens of prompts that began, per second, over the last ten seconds.
        uptime_s: Seconds since it was started.
        counts: The scheduler's: running requests, pages, cached tokens, preemptions.
        times: The loop's: steps, and how long they took.
    """

    state: State
    num_streams: int
    num_waiting: int
    finished: Mapping[str, int]
    tokens_per_s: float
    prompt_tokens_per_s: float
    uptime_s: float
    counts: SchedulerCounts
    times: LoopTimes


_Reference: TypeAlias = "weakref.ref[TokenStream]"


@dataclass(frozen=True, slots=True)
class _Add:
    context: TextContext
    stream: _Reference


@dataclass(frozen=True, slots=True)
class _Abort:
    """Names may be used again, so the stream tells which request is meant."""

    request_id: RequestID
    stream: _Reference
    choice: int | None = None


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


class AsyncEngine:
    """Runs a pipeline in a thread of its own. As a context manager it is shut down at the end.

    Args:
        pipeline: The loop; from now on nobody else may use it.
        max_queue_size: Requests that may wait, those included whose end was not fetched yet.

    Raises:
        ValueError: `max_queue_size` is below 1.
    """

    def __init__(self, pipeline: TextGenerationPipeline, *, max_queue_size: int = 512) -> None:
        if max_queue_size < 1:
            raise ValueError(f"max_queue_size must be at least 1, got {max_queue_size}")
        self._pipeline = pipeline
        self._max_queue_size = max_queue_size
        # The queue may be filled while the garbage collector runs, in whichever thread: it takes no locks for that.
        self._inbox: queue.SimpleQueue[_Add | _Abort | _Stop] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of what follows
        self._state: State = "runs"
        self._streams: dict[RequestID, _Reference] = {}
        self._unread: set[RequestID] = set()  # streams that ended and were not fetched to the end
        self._num_unprocessed = 0  # requests in the inbox
        self._is_idle = threading.Condition(self._lock)
        self._finished: Counter[str] = Counter()
        self._counts = pipeline.counts()
        self._times = pipeline.times
        self._samples: deque[tuple[float, int, int]] = deque()  # time, generated tokens, prompt tokens
        self._begin_s = time.monotonic()
        self._routes: dict[RequestID, _Reference] = {}  # the thread's own: where tokens of what runs now go
        self._thread = threading.Thread(target=self._run, name="puna-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> AsyncEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def submit(self, context: TextContext) -> TokenStream:
        """Takes a request in; any thread may ask, and none waits.

        Raises:
            InvalidRequestError: It can never be served, or its name is taken.
            QueueFullError: Too many wait.
            EngineStoppedError: No requests are taken any more.
        """
        self._pipeline.check(context)
        name = context.request_id
        stream = TokenStream(name, context.num_choices, self._let_go)
        with self._lock:
            if self._state != "runs":
                raise EngineStoppedError(self._state)
            if name in self._streams:
                raise InvalidRequestError(f"{name} is taken", param="request_id")
            if self._num_waiting + len(self._unread) >= self._max_queue_size:
                raise QueueFullError(self._max_queue_size)
            reference = weakref.ref(stream, lambda dropped: self._inbox.put(_Abort(name, dropped)))
            self._streams[name] = reference
            self._num_unprocessed += 1
            self._inbox.put(_Add(context, reference))
        return stream

    async def generate(self, context: TextContext) -> AsyncIterator[GenerationDelta]:
        """Answers a request. A generator that is closed or cancelled ends it.

        A request that fails while it runs ends with a delta that has the `error`.

        Raises:
            As `submit`, before the first delta.
        """
        stream = self.submit(context)
        try:
            async for delta in stream:
                yield delta
        finally:
            stream.close()

    def abort(self, request_id: RequestID, choice: int | None = None) -> None:
        """Ends a request, or one continuation of it, before the next step; one that has ended is left alone.

        Its stream ends with the reason `abort`.
        """
        with self._lock:
            reference = self._streams.get(request_id)
            if reference is not None:
                self._inbox.put(_Abort(request_id, reference, choice))

    def statistics(self) -> EngineStatistics:
        """What it did so far, and what is under way; any thread may ask."""
        with self._lock:
            now = time.monotonic()
            recent = [sample for sample in self._samples if sample[0] > now - _WINDOW_S]
            window = max(min(_WINDOW_S, now - self._begin_s), 1e-9)
            return EngineStatistics(
                state=self._state,
                num_streams=len(self._streams),
                num_waiting=self._num_waiting,
                finished=dict(self._finished),
                tokens_per_s=sum(sample[1] for sample in recent) / window,
                prompt_tokens_per_s=sum(sample[2] for sample in recent) / window,
                uptime_s=now - self._begin_s,
                counts=self._counts,
                times=self._times,
            )

    def drain(self, timeout_s: float | None = None) -> bool:
        """Takes no further requests and waits until those that it has are answered.

        Returns:
            Whether they all are; False: the time was over before.
        """
        with self._lock:
            if self._state == "runs":
                self._state = "drains"
            self._is_idle.wait_for(lambda: not self._has_work or self._state == "died", timeout_s)
            return not self._has_work

    def shutdown(self) -> None:
        """Ends all requests, and the thread. Their streams end with the reason `abort`."""
        with self._lock:
            if self._state != "died":
                self._state = "was shut down"
        self._inbox.put(_Stop())
        if threading.current_thread() is not self._thread:
            self._thread.join()

    @property
    def _num_waiting(self) -> int:
        return self._num_unprocessed + self._counts.num_waiting

    @property
    def _has_work(self) -> bool:
        return self._num_unprocessed > 0 or self._counts.num_waiting + self._counts.num_running > 0

    def _run(self) -> None:
        """The thread. If it ends by a mistake of its own, nobody waits for ever: all streams end with an error."""
        try:
            self._loop()
        except BaseException as error:
            _log.critical("the engine's thread died", exc_info=error)
            with self._lock:
                self._state = "died"
                references, self._streams = list(self._streams.values()), {}
                self._is_idle.notify_all()
            failure = EngineStoppedError("died")
            waiters: list[tuple[TokenStream, Waiter]] = []
            for stream in (reference() for reference in references):
                if stream is not None:
                    ends = _ends(stream.request_id, stream.open_choices, FinishReason.ERROR, failure)
                    waiters += [(stream, waiter) for delta in ends if (waiter := stream.push(delta)) is not None]
            wake_all(waiters)

    def _loop(self) -> None:
        """What it is told, a step, what came of it."""
        while self._obey():
            try:
                deltas = self._pipeline.step()
            except Exception as error:  # a mistake of the loop itself: its requests end, the engine lives on
                _log.exception("a step failed outside the model; all requests end")
                deltas = self._abort_all(StepFailedError(error))
            self._tell(deltas)
        self._tell(self._abort_all())

    def _obey(self) -> bool:
        """Does what it was told, and waits to be told something while there is nothing to do; False: it shall stop."""
        while True:
            try:
                message = self._inbox.get(block=not self._pipeline.has_work)
            except queue.Empty:
                return True
            match message:
                case _Stop():
                    return False
                case _Add():
                    self._add(message)
                case _Abort():
                    self._abort(message)

    def _add(self, message: _Add) -> None:
        context = message.context
        self._routes[context.request_id] = message.stream
        ended: list[GenerationDelta] = []
        try:
            self._pipeline.add(context)
        except PunaError as error:
            ended = _ends(context.request_id, range(context.num_choices), FinishReason.ERROR, error)
        self._tell(ended, num_processed=1)

    def _abort(self, message: _Abort) -> None:
        name, choice = message.request_id, message.choice
        stream = message.stream()
        if self._routes.get(name) is message.stream:
            choices = stream.open_choices if stream is not None else []
            has_ended = self._pipeline.abort(name, choice)
            if not choices:
                del self._routes[name]
            self._tell(_ends(name, choices if choice is None else [choice]) if has_ended and choices else [])
        if stream is None:
            with self._lock:
                if self._streams.get(name) is message.stream:
                    del self._streams[name]
                    self._unread.discard(name)

    def _abort_all(self, error: PunaError | None = None) -> list[GenerationDelta]:
        """Ends all requests."""
        deltas: list[GenerationDelta] = []
        for name, reference in self._routes.items():
            self._pipeline.abort(name)
            stream = reference()
            if stream is not None:
                reason = FinishReason.ABORT if error is None else FinishReason.ERROR
                deltas += _ends(name, stream.open_choices, reason, error)
        return deltas

    def _tell(self, deltas: list[GenerationDelta], num_processed: int = 0) -> None:
        """Hands out what came of a step or a message, and notes it."""
        counts, times, now = self._pipeline.counts(), self._pipeline.times, time.monotonic()
        waiters: list[tuple[TokenStream, Waiter]] = []  # from here on nothing may fail: who is in it waits for a call
        ended: list[tuple[RequestID, _Reference]] = []
        for delta in deltas:
            reference = self._routes.get(delta.request_id)
            stream = None if reference is None else reference()
            if reference is None or stream is None:
                continue
            waiter = stream.push(delta)
            if waiter is not None:
                waiters.append((stream, waiter))
            if delta.finish_reason is not None and not stream.open_choices:
                ended.append((delta.request_id, reference))
                del self._routes[delta.request_id]
        with self._lock:
            self._num_unprocessed -= num_processed
            self._unread.update(name for name, reference in ended if self._streams.get(name) is reference)
            self._finished.update(str(delta.finish_reason) for delta in deltas if delta.finish_reason is not None)
            generated = counts.num_generated_tokens - self._counts.num_generated_tokens
            read = counts.num_prompt_tokens - self._counts.num_prompt_tokens
            if generated or read:
                self._samples.append((now, generated, read))
            while self._samples and self._samples[0][0] < now - _WINDOW_S:
                self._samples.popleft()
            self._counts, self._times = counts, times
            if not self._has_work:
                self._is_idle.notify_all()
        for stream in wake_all(waiters):
            stream.close()

    def _let_go(self, stream: TokenStream) -> None:
        """Nobody fetches from this stream any more."""
        name = stream.request_id
        with self._lock:
            reference = self._streams.get(name)
            if reference is None or reference() is not stream:
                return
            del self._streams[name]
            if name in self._unread:
                self._unread.discard(name)
            else:
                self._inbox.put(_Abort(name, reference))


def _ends(
    name: RequestID,
    choices: Iterable[int],
    reason: FinishReason = FinishReason.ABORT,
    error: PunaError | None = None,
) -> list[GenerationDelta]:
    return [GenerationDelta(name, finish_reason=reason, error=error, choice=choice) for choice in choices]
