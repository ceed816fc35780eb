"""The loop over a real model, with everything open that may differ between two ways of computing the same request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from puna.entrypoints.llm import LLM
from puna.pipelines.batch import FinishReason
from puna.pipelines.context import LogProbabilities, TextContext, TokenBuffer
from puna.pipelines.kv_cache import BlockStore, CacheKey, PagedKVCacheManager
from puna.pipelines.request import RequestID
from puna.pipelines.sampling import Sampler
from puna.pipelines.sampling_params import SamplingParams
from puna.pipelines.scheduler import Scheduler, SchedulerLimits
from puna.pipelines.text_generation import TextGenerationPipeline


@dataclass
class Outcome:
    """What a request got: its tokens, and the bytes of every logits row that they were chosen from."""

    tokens: list[int] = field(default_factory=list)
    logits: list[bytes] = field(default_factory=list)
    log_probabilities: list[LogProbabilities] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: Exception | None = None


@dataclass
class RealLoop:
    """A pipeline of its own over the model of a loaded `LLM`.

    Attributes:
        llm: The model.
        num_blocks: Pages of the cache.
        limits: What a step may hold.
        shuffle: Seed of the order in which pages are handed out; None: ascending.
        store: Where pages are kept on disk; None: nowhere.
    """

    llm: LLM
    num_blocks: int = 64
    limits: SchedulerLimits = field(default_factory=SchedulerLimits)
    shuffle: int | None = None
    store: BlockStore | None = None

    def __post_init__(self) -> None:
        model: Any = self.llm.model
        replicas = range(model.kv_params.data_parallel_degree)
        self.kvs = [PagedKVCacheManager(model.kv_params, self.num_blocks, self.store) for _ in replicas]
        self.kv = self.kvs[0]
        self.scheduler = Scheduler(self.kvs, self.limits, model.rope if model.rope.depends_on_length else None)
        self.pipeline = TextGenerationPipeline(model, self.scheduler, Sampler())
        if self.shuffle is not None:
            pages = [RequestID(f"page {index}") for index in range(self.num_blocks)]
            for page in pages:
                self.kv.reserve(page, 1, CacheKey())
            for index in np.random.default_rng(self.shuffle).permutation(self.num_blocks):
                self.kv.release(pages[index])

    def run(self, contexts: Sequence[TextContext]) -> list[Outcome]:
        """Answers all of them; the books of the cache are checked after every step."""
        outcomes = {context.request_id: Outcome() for context in contexts}
        for context in contexts:
            self.pipeline.add(context)
        while self.pipeline.has_work:
            for delta in self.pipeline.step():
                outcome = outcomes[delta.request_id]
                outcome.tokens += delta.tokens
                outcome.log_probabilities += delta.log_probabilities
                outcome.finish_reason, outcome.error = delta.finish_reason, delta.error
            for kv in self.kvs:
                kv.check()
        assert all(kv.counts().used == 0 for kv in self.kvs)
        for context in contexts:
            for process in context.sampling_params.logits_processors or ():
                outcomes[context.request_id].logits = getattr(process, "rows", [])
        return list(outcomes.values())


class Recorder:
    """A logits processor that changes nothing and keeps the bytes of every row."""

    def __init__(self) -> None:
        self.rows: list[bytes] = []

    def __call__(self, logits: np.ndarray[Any, Any], _context: TextContext) -> None:
        self.rows.append(logits.tobytes())


def request(
    prompt: Sequence[int], new_tokens: int, *, record: bool = True, params: dict[str, Any] | None = None, **options: Any
) -> TextContext:
    """A request that never ends early; greedy unless `params` state something else.

    Args:
        prompt: Its token ids.
        new_tokens: How many are generated.
        record: Whether its logits are kept. A turn then has one forward pass.
        params: Of the sampling.
        options: Further fields of the context.
    """
    sampling = {"temperature": 0.0, "seed": 1} | (params or {})
    processors = (Recorder(),) if record else None
    return TextContext(
        tokens=TokenBuffer(np.array(prompt, dtype=np.int64)),
        max_length=len(prompt) + new_tokens,
        sampling_params=SamplingParams(**sampling, logits_processors=processors),
        **options,
    )
