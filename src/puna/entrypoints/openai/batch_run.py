"""`BatchRun`: answers the lines of a batch file with a loaded model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.entrypoints.jobs import Job
from puna.entrypoints.llm import LLM
from puna.entrypoints.openai.batch import ResultFile, lines_of, read_line, result_line
from puna.entrypoints.openai.requests import BodyDefaults, Call, read_body
from puna.entrypoints.openai.responses import embedding_body, generated_body
from puna.errors import PunaError
from puna.pipelines.sampling_params import SamplingParamsInput

__all__ = ["BatchRun"]


@dataclass(kw_only=True)
class _LineJob(Job):
    """What a line asks for; `call`: None if it has an error."""

    custom_id: str
    call: Call | None = None


class BatchRun:
    """A file on its way through a model.

    Args:
        llm: The model.
        name: What results call it.
        model_names: What lines may call it.
        sampling: What counts where a line states nothing.
        seed: What the seeds of lines without one are made of; None: they are drawn.
        adapter: The adapter of lines that name no model; None: the model itself.

    Attributes:
        num_prompt_tokens: Tokens that were read so far.
        num_generated_tokens: Tokens that were generated so far.
    """

    def __init__(
        self,
        llm: LLM,
        name: str,
        *,
        model_names: Collection[str],
        sampling: SamplingParamsInput,
        seed: int | None,
        adapter: str | None = None,
    ) -> None:
        self._llm = llm
        self._name = name
        self._model_names = model_names
        self._sampling = sampling
        self._seed = seed
        self._adapter = adapter
        self._adapters = frozenset(info.name for info in llm.list_lora_adapters())
        self._begin = time.perf_counter()
        self.num_prompt_tokens = 0
        self.num_generated_tokens = 0

    def answer(self, source: Path, results: ResultFile, max_in_flight: int, tell: Callable[[str], None]) -> None:
        """Answers what has no result yet.

        Args:
            source: The file of requests.
            results: Where results go.
            max_in_flight: Requests that are in memory at once.
            tell: Is called after each result with the rate so far.

        Raises:
            OSError: a file cannot be read or written.
        """
        for job in self._llm.answer_jobs(self._jobs(source, results), max_in_flight=max_in_flight):
            body, error = None, job.error
            if error is None:
                try:
                    body = self._body(job)
                except PunaError as refusal:
                    error = refusal
            results.append(result_line(job.custom_id, body, error))
            self.num_prompt_tokens += sum(len(output.prompt_token_ids) for output in job.outputs)
            self.num_generated_tokens += sum(len(made.token_ids) for one in job.outputs for made in one.outputs)
            tell(self._rate())

    def _jobs(self, source: Path, results: ResultFile) -> Iterator[_LineJob]:
        for number, data in lines_of(source):
            line = read_line(data, number)
            if line.custom_id in results.done:
                continue
            call, error = None, line.error
            if error is None:
                try:
                    defaults = BodyDefaults(
                        sampling=self._sampling, seed=self._seed_of(line.custom_id), adapters=self._adapters
                    )
                    body = line.body if "model" in line.body else {**line.body, "model": self._adapter}
                    call = read_body(line.endpoint, body, self._model_names, defaults)
                except PunaError as refusal:
                    error = refusal
            if call is None:
                yield _LineJob(custom_id=line.custom_id, error=error)
                continue
            yield _LineJob(
                custom_id=line.custom_id,
                call=call,
                requests=call.requests,
                pooling=call.pooling,
                normalize=call.normalize,
            )

    def _seed_of(self, custom_id: str) -> int | None:
        """A line's seed depends on its name alone, not on what was answered before an interruption."""
        if self._seed is None:
            return None
        return int.from_bytes(hashlib.blake2b(f"{self._seed}:{custom_id}".encode(), digest_size=4).digest(), "little")

    def _body(self, job: _LineJob) -> dict[str, Any]:
        call = job.call
        assert call is not None, "a job without a call has an error"
        if job.vectors is not None:
            num_tokens = sum(len(output.prompt_token_ids) for output in job.outputs)
            return embedding_body(call, job.vectors, model=self._name, num_tokens=num_tokens)
        tokenizer = self._llm.tokenizer if self._llm.has_tokenizer else None
        return generated_body(call, job.outputs, model=self._name, created=int(time.time()), tokenizer=tokenizer)

    def _rate(self) -> str:
        return f"{self.num_generated_tokens / (time.perf_counter() - self._begin):.0f} tokens/s"

    def summary(self) -> str:
        """What was computed, and how fast."""
        seconds = time.perf_counter() - self._begin
        return (
            f"{self.num_prompt_tokens} tokens of prompts and {self.num_generated_tokens} generated in {seconds:.1f} s, "
            f"{self._rate()}"
        )
