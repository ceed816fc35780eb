"""Runs tests of speed on a loaded model, through the loop that answers requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import numpy as np
import numpy.typing as npt

from puna.engine.trace import Trace
from puna.entrypoints.benchmark.specs import Spec
from puna.entrypoints.llm import LLM
from puna.errors import InvalidRequestError
from puna.pipelines.context import TextContext, TokenBuffer
from puna.pipelines.sampling_params import SamplingParams

__all__ = ["Runner", "TracedStep"]

_PAGE: Final = 128
_STEP_TOKENS: Final = 512
_SLACK: Final = 64  # tokens that sequences may generate while others still read their prompts
_MAX_RANK: Final = 512  # of an adapter
_TRACED_STEPS: Final = 9  # of these, the one with the median time is shown


@dataclass(frozen=True, slots=True)
class TracedStep:
    """One step of the loop.

    Attributes:
        seconds: Its time from outside: scheduling, the native call, sampling.
        trace: Its instructions.
    """

    seconds: float
    trace: Trace


class Runner:
    """A model loaded for some tests.

    Prompts are random tokens. Sequences are greedy and never end early. What a test needs in the cache beforehand is
    computed once and found there again, as prefixes of prompts are.

    Args:
        model: A file, a directory, or a model's name.
        specs: The tests that will be run.
        threads: Threads to use; None: all that may be used.
        kv_cache_dtype: Element type of cached keys and values.
        revision: Branch, tag or commit on the hub.
        lora_paths: Adapters of the tests that have any.
        seed: Of the prompts.

    Raises:
        InvalidRequestError: A test does not fit the model's context, or the depth of a prompt is no multiple of 128.
        PunaError: The model cannot be loaded.
    """

    def __init__(
        self,
        model: str,
        specs: Sequence[Spec],
        *,
        threads: int | None = None,
        kv_cache_dtype: str = "auto",
        revision: str | None = None,
        lora_paths: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        for spec in specs:
            if spec.kind == "pp" and spec.depth % _PAGE:
                raise InvalidRequestError(f"the depth of {spec.name} must be a multiple of {_PAGE}", param="test")
        for spec in specs:
            if spec.adapters > len(lora_paths):
                message = f"{spec.name} needs {spec.adapters} of them, got {len(lora_paths)}"
                raise InvalidRequestError(message, param="lora_paths")
        sequences = max((spec.sequences for spec in specs), default=1)
        self._llm = LLM(
            model,
            kv_cache_dtype=kv_cache_dtype,
            max_model_len=max((spec.depth + spec.tokens + _SLACK for spec in specs), default=_SLACK),
            threads=threads,
            max_num_seqs=sequences + 1 + sequences // 8,  # the scheduler never fills the cache to the last page
            max_num_batched_tokens=max(_STEP_TOKENS, sequences + 1 + sequences // 8),
            block_size=_PAGE,
            revision=revision,
            enable_lora=bool(lora_paths),
            lora_paths=lora_paths,
            max_lora_rank=_MAX_RANK,
        )
        self._adapters = [self._llm.model.lora_manager.find(i.name) for i in self._llm.list_lora_adapters()]
        self._draw = np.random.default_rng(seed)
        rows = self._llm.model.config.vocab_size
        self._vocabulary = min(self._llm.tokenizer.vocab_size, rows) if self._llm.has_tokenizer else rows
        self._beginnings: dict[Spec, list[npt.NDArray[np.int64]]] = {}

    @property
    def load_s(self) -> float:
        """How long loading took."""
        return self._llm.load_seconds

    def warm(self, spec: Spec) -> None:
        """Runs a test once, in part: memory is touched, the beginnings of its sequences are in the cache."""
        if spec.depth:
            for context in self._contexts(self._beginning(spec), spec):
                self._finish_prompts([context])
        self._run(spec, steps=2)

    def run(self, spec: Spec) -> float:
        """Runs a test once.

        Returns:
            Tokens per second, over all sequences.
        """
        return spec.total_tokens / self._run(spec, steps=spec.tokens)

    def trace(self, spec: Spec) -> list[TracedStep]:
        """Runs a test once more and notes its instructions.

        Returns:
            The steps that read the prompt, or one step that generates.
        """
        steps: list[TracedStep] = []
        engine = self._llm.model.model
        engine.is_tracing = True
        try:
            self._run(spec, steps=_TRACED_STEPS, look=lambda seconds: steps.append(TracedStep(seconds, engine.trace())))
        finally:
            engine.is_tracing = False
        if spec.kind == "pp":
            return steps
        return [sorted(steps, key=lambda step: step.seconds)[len(steps) // 2]]

    def _run(self, spec: Spec, steps: int, look: Callable[[float], None] | None = None) -> float:
        """The test's measured part, in seconds; `look` is shown the time of each of its steps, and costs none."""
        if spec.kind == "pp":
            beginnings = self._beginning(spec)
            prompts = [np.concatenate([tokens, self._random(spec.tokens)]) for tokens in beginnings]
            return self._finish_prompts(self._contexts(prompts, spec), look)
        prompts = self._beginning(spec) if spec.depth else [self._random(1) for _ in range(spec.sequences)]
        contexts = self._contexts(prompts, spec)
        try:
            self._read_prompts(contexts)
            return sum(self._step(look) for _ in range(steps))
        finally:
            self._abort(contexts)

    def _finish_prompts(self, contexts: list[TextContext], look: Callable[[float], None] | None = None) -> float:
        try:
            return self._read_prompts(contexts, look)
        finally:
            self._abort(contexts)

    def _read_prompts(self, contexts: list[TextContext], look: Callable[[float], None] | None = None) -> float:
        """Goes on until every request has its first token."""
        seconds = 0.0
        for context in contexts:
            self._llm.pipeline.add(context)
        while any(context.is_initial_prompt for context in contexts):
            seconds += self._step(look)
        return seconds

    def _step(self, look: Callable[[float], None] | None) -> float:
        begin = perf_counter()
        deltas = self._llm.pipeline.step()
        seconds = perf_counter() - begin
        for delta in deltas:
            if delta.error is not None:
                raise delta.error
        if look is not None:
            look(seconds)
        return seconds

    def _abort(self, contexts: list[TextContext]) -> None:
        for context in contexts:
            self._llm.pipeline.abort(context.request_id)

    def _contexts(self, prompts: Sequence[npt.NDArray[np.int64]], spec: Spec) -> list[TextContext]:
        """A request per prompt; the test's adapters are given out in turn."""
        return [
            TextContext(
                tokens=TokenBuffer(prompt.copy()),
                max_length=self._llm.max_model_len,
                sampling_params=SamplingParams(temperature=0, seed=0, ignore_eos=True),
                adapter=self._adapters[number % spec.adapters] if spec.adapters else None,
            )
            for number, prompt in enumerate(prompts)
        ]

    def _random(self, count: int) -> npt.NDArray[np.int64]:
        return self._draw.integers(0, self._vocabulary, count)

    def _beginning(self, spec: Spec) -> list[npt.NDArray[np.int64]]:
        if spec not in self._beginnings:
            self._beginnings[spec] = [self._random(spec.depth) for _ in range(spec.sequences)]
        return self._beginnings[spec]
