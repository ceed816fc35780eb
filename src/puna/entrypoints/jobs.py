"""`Job`: requests that are answered together, out of a source that may be endless. `LLM.answer_jobs` runs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from puna.entrypoints.answer import Answer
from puna.entrypoints.loop_driver import LoopDriver
from puna.entrypoints.outputs import RequestOutput
from puna.entrypoints.preparation import Preparation
from puna.errors import PunaError
from puna.pipelines.prompt_reading import Pooling, PoolingReader
from puna.pipelines.request import GenerateRequest

__all__ = ["Job", "run_jobs"]


@dataclass(kw_only=True)
class Job:
    """Requests that are answered together, and what came of them.

    Attributes:
        requests: What is asked.
        pooling: The prompts are read and pooled to vectors; None: they are continued.
        normalize: Vectors are scaled to length 1.
        outputs: One per request, when the job is done.
        vectors: Float32 `[n, H]`, when a job with `pooling` is done.
        error: Why nothing came of it; a job that has one from the start is given back at once.
    """

    requests: Sequence[GenerateRequest] = ()
    pooling: Pooling | None = None
    normalize: bool = True
    outputs: list[RequestOutput] = field(default_factory=list)
    vectors: npt.NDArray[np.float32] | None = None
    error: PunaError | None = None


_J = TypeVar("_J", bound=Job)


class _Running:
    """A job that is in the loop."""

    def __init__(self, job: Job, preparation: Preparation, layer: int) -> None:
        self._job = job
        self._readers: list[PoolingReader] = []
        self.answers = [self._answer(request, preparation, layer) for request in job.requests]

    def _answer(self, request: GenerateRequest, preparation: Preparation, layer: int) -> Answer:
        if self._job.pooling is None:
            return preparation.answer(request)
        reader = PoolingReader(self._job.pooling, layer)
        self._readers.append(reader)
        text, ids = preparation.encode(request)
        adapter = request.adapter if request.model_name is None else request.model_name
        return Answer(preparation.reading(ids, reader, adapter), None, (), prompt=text)

    @property
    def is_finished(self) -> bool:
        return all(answer.is_finished for answer in self.answers)

    def collect(self) -> None:
        """Gives the job what came."""
        job = self._job
        job.outputs = [answer.output() for answer in self.answers]
        job.error = next((output.error for output in job.outputs if output.error is not None), None)
        if self._readers and job.error is None:
            job.vectors = np.stack([reader.vector(job.normalize) for reader in self._readers])


def run_jobs(
    jobs: Iterable[_J], driver: LoopDriver, preparation: Preparation, *, max_in_flight: int, layer: int
) -> Iterator[_J]:
    """Runs jobs; a new one begins whenever fewer than `max_in_flight` requests are under way.

    Args:
        jobs: Taken from when there is room.
        driver: The loop.
        preparation: Makes contexts.
        max_in_flight: From 1; a job with more requests runs all the same.
        layer: Whose outputs are pooled, as readers number them.

    Yields:
        Each job when it is done, in the order of their ends.
    """
    source = iter(jobs)
    running: list[tuple[_J, _Running]] = []
    is_exhausted = False
    try:
        while not is_exhausted or running:
            while not is_exhausted and sum(len(run.answers) for _, run in running) < max_in_flight:
                job = next(source, None)
                if job is None:
                    is_exhausted = True
                elif (run := _start(job, driver, preparation, layer)) is not None:
                    running.append((job, run))
                else:
                    yield job
            if running:
                driver.finish_one([answer for _, run in running for answer in run.answers])
            for job, run in [pair for pair in running if pair[1].is_finished]:
                running.remove((job, run))
                driver.end(run.answers)
                run.collect()
                yield job
    finally:
        for _, run in running:
            driver.end(run.answers)


def _start(job: Job, driver: LoopDriver, preparation: Preparation, layer: int) -> _Running | None:
    """Puts a job into the loop; None: it has an error, perhaps since now."""
    if job.error is not None:
        return None
    run: _Running | None = None
    try:
        run = _Running(job, preparation, layer)
        driver.begin(run.answers)
    except PunaError as error:
        if run is not None:
            driver.end(run.answers)
        job.error = error
        return None
    return run
