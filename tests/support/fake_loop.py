"""The loop over the fake model, checked after every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from puna.nn.rotary_embedding import RotaryEmbedding
from puna.pipelines.batch import GenerationDelta
from puna.pipelines.context import TextContext, TokenBuffer
from puna.pipelines.kv_cache import BlockStore, PagedKVCacheManager
from puna.pipelines.request import RequestID
from puna.pipelines.sampling import Sampler
from puna.pipelines.sampling_params import SamplingParams
from puna.pipelines.scheduler import Scheduler, SchedulerLimits
from puna.pipelines.text_generation import TextGenerationPipeline
from support.fake_model import FakeModel, fake_params

GREEDY = SamplingParams(temperature=0)


@dataclass
class Rig:
    """A pipeline over the fake model."""

    num_blocks: int = 64
    page_size: int = 4
    prefix: bool = True
    rope: RotaryEmbedding | None = None
    limits: SchedulerLimits = field(default_factory=lambda: SchedulerLimits(max_batch_size=4))
    poison: int = -1
    explosive: int = -1
    num_replicas: int = 1
    store: BlockStore | None = None
    clock: Callable[[], float] = lambda: 0.0

    def __post_init__(self) -> None:
        regime = self.rope.regime if self.rope is not None else (lambda length: 0)
        self.model = FakeModel(regime=regime, poison=self.poison, explosive=self.explosive)
        params = fake_params(self.page_size, self.prefix)
        self.kvs = [PagedKVCacheManager(params, self.num_blocks, self.store) for _ in range(self.num_replicas)]
        self.kv = self.kvs[0]
        self.scheduler = Scheduler(self.kvs, self.limits, self.rope, self.clock)
        self.pipeline = TextGenerationPipeline(self.model, self.scheduler, Sampler())

    def step(self) -> list[GenerationDelta]:
        """A step; the books of the cache are checked after it."""
        deltas = self.pipeline.step()
        self.check()
        return deltas

    def check(self) -> None:
        """Every page is free or held by those that count it."""
        for kv in self.kvs:
            kv.check()

    def finish(self, most_steps: int = 10_000) -> list[GenerationDelta]:
        """Steps until nothing is left to do."""
        deltas: list[GenerationDelta] = []
        for _ in range(most_steps):
            if not self.pipeline.has_work:
                break
            deltas += self.step()
        assert not self.pipeline.has_work, "the loop does not end"
        assert all(kv.counts().used == 0 for kv in self.kvs)
        return deltas

    def run(self, contexts: Sequence[TextContext]) -> dict[RequestID, list[GenerationDelta]]:
        """All deltas by request."""
        for item in contexts:
            self.pipeline.add(item)
        deltas: dict[RequestID, list[GenerationDelta]] = {item.request_id: [] for item in contexts}
        for delta in self.finish():
            deltas[delta.request_id].append(delta)
        return deltas

    def tokens(self, contexts: Sequence[TextContext]) -> list[list[int]]:
        """What each request got."""
        deltas = self.run(contexts)
        return [[token for delta in deltas[c.request_id] for token in delta.tokens] for c in contexts]


def context(prompt: Sequence[int], count: int = 10, params: SamplingParams = GREEDY, **options: Any) -> TextContext:
    """A request for `count` tokens."""
    return TextContext(
        tokens=TokenBuffer(np.array(prompt, dtype=np.int64)),
        max_length=len(prompt) + count,
        sampling_params=params,
        **options,
    )


def prompts_of(seed: int, count: int, longest: int = 30) -> list[list[int]]:
    """Prompts that share beginnings, so that prefixes are found."""
    draw = np.random.default_rng(seed)
    stem = draw.integers(0, 50, longest).tolist()
    found = []
    for _ in range(count):
        shared = int(draw.integers(0, longest))
        own = draw.integers(0, 50, int(draw.integers(1, longest))).tolist()
        found.append((stem[:shared] + own)[:longest])
    return found


def one_regime(length: int) -> int:
    """The regime where lengths decide nothing."""
    return 0
