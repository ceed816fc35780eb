"""`LoopDriver`: lets several threads use one loop: whoever waits for an answer takes the next step for all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from puna.entrypoints.answer import Answer
from puna.entrypoints.fair_lock import FairLock
from puna.errors import InvalidRequestError
from puna.pipelines.request import RequestID
from puna.pipelines.text_generation import TextGenerationPipeline

__all__ = ["LoopDriver"]


class LoopDriver:
    """Runs a loop in the threads that wait for it.

    Args:
        pipeline: The loop; nobody else may use it meanwhile.
    """

    def __init__(self, pipeline: TextGenerationPipeline) -> None:
        self._pipeline: TextGenerationPipeline | None = pipeline
        self._turn = FairLock()  # whoever has it may use the loop
        self._answers: dict[RequestID, Answer] = {}

    def begin(self, answers: Sequence[Answer], parent: Answer | None = None) -> None:
        """Puts the answers' requests into the loop.

        Args:
            answers: Whose requests.
            parent: A request that they begin like; while it is in the loop they share what it has computed.

        Raises:
            InvalidRequestError: a request asks for what is not there, or can never fit.
            QueueFullError: too many wait.
        """
        with self._turn:
            for answer in answers:
                if parent is not None and not parent.is_finished:
                    self._loop.fork(parent.context.request_id, answer.context)
                else:
                    self._loop.add(answer.context)
                self._answers[answer.context.request_id] = answer

    def end(self, answers: Sequence[Answer]) -> None:
        """Ends those of the answers' requests that are still in the loop."""
        with self._turn:
            for answer in answers:
                request_id = answer.context.request_id
                if self._answers.get(request_id) is answer:
                    del self._answers[request_id]
                    if self._pipeline is not None:
                        self._pipeline.abort(request_id)

    @contextlib.contextmanager
    def running(self, answers: Sequence[Answer], parent: Answer | None = None) -> Iterator[None]:
        """The answers' requests are in the loop meanwhile. Arguments and errors are those of `begin`."""
        try:
            self.begin(answers, parent)
            yield
        finally:
            self.end(answers)

    def advance(self, answer: Answer) -> None:
        """Takes steps until something new came for an answer."""
        while not answer.has_news and not answer.is_finished:
            with self._turn:
                if not answer.has_news and not answer.is_finished:
                    self._step()

    def finish(self, answer: Answer) -> None:
        """Takes steps until an answer is finished."""
        while not answer.is_finished:
            with self._turn:
                if not answer.is_finished:
                    self._step()

    def finish_one(self, answers: Sequence[Answer]) -> None:
        """Takes steps until one more of some answers is finished; at once if all are."""
        pending = [answer for answer in answers if not answer.is_finished]
        while pending and not any(answer.is_finished for answer in pending):
            with self._turn:
                if not any(answer.is_finished for answer in pending):
                    self._step()

    def grow(self, answers: Sequence[Answer]) -> Iterator[Answer]:
        """Takes steps until all answers are finished; gives each of them whenever something came for it."""
        while True:
            news = [answer for answer in answers if answer.has_news]
            yield from news
            if not news:
                if all(answer.is_finished for answer in answers):
                    return
                with self._turn:
                    if not any(answer.has_news for answer in answers):
                        self._step()

    def close(self) -> None:
        """Ends all requests; whoever waits for one gets an error."""
        with self._turn:
            self._pipeline = None
            self._answers.clear()

    @property
    def _loop(self) -> TextGenerationPipeline:
        if self._pipeline is None:
            raise InvalidRequestError("this LLM is closed")
        return self._pipeline

    def _step(self) -> None:
        loop = self._loop
        for delta in loop.step():
            answer = self._answers[delta.request_id]
            # A stop string ends its request, as a message from here back to the loop.
            if answer.take(delta):
                loop.abort(delta.request_id, delta.choice)
