"""Random schedules over the model without weights: whatever happens around a request, it gets what it gets alone."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from puna.errors import InvalidRequestError, StepFailedError
from puna.pipelines.batch import FinishReason, GenerationDelta
from puna.pipelines.request import RequestID
from puna.pipelines.sampling import NonFiniteLogitsError
from puna.pipelines.sampling_params import SamplingParams
from puna.pipelines.scheduler import SchedulerLimits
from support.fake_loop import Rig, context, prompts_of
from support.fake_model import FakeAdapter

POISON, EXPLOSIVE = 60, 61  # never generated
LONGEST = 30
PROMPTS = prompts_of(11, 24, 18)


@cache
def alone(prompt: tuple[int, ...], count: int, seed: int | None, adapter: FakeAdapter | None) -> list[int]:
    """What one continuation gets when nothing else is there: no cache, no chunks, one replica."""
    (tokens,) = Rig(prefix=False).tokens([context(prompt, count, params(seed), adapter=adapter)])
    return tokens


@cache
def alone_choices(
    prompt: tuple[int, ...], count: int, seed: int | None, num_choices: int, adapter: FakeAdapter | None
) -> list[list[int]]:
    rig = Rig(prefix=False)
    rig.pipeline.add(context(prompt, count, params(seed), num_choices=num_choices, adapter=adapter))
    found: list[list[int]] = [[] for _ in range(num_choices)]
    for delta in rig.finish():
        found[delta.choice] += delta.tokens
    assert found[0] == alone(prompt, count, seed, adapter)
    return found


def params(seed: int | None) -> SamplingParams:
    return SamplingParams(temperature=0) if seed is None else SamplingParams(seed=seed, top_k=20)


@dataclass
class Asked:
    """A request, and what it got so far."""

    prompt: tuple[int, ...]
    count: int
    seed: int | None
    num_choices: int
    adapter: FakeAdapter | None = None
    got: dict[int, list[int]] = field(default_factory=dict)
    ended: dict[int, GenerationDelta] = field(default_factory=dict)
    is_aborted: bool = False

    def take(self, delta: GenerationDelta) -> None:
        assert not self.is_aborted, "an aborted request got tokens"
        assert delta.choice not in self.ended, "tokens behind the end"
        assert delta.tokens or delta.finish_reason is not None, "a delta without news"
        self.got.setdefault(delta.choice, []).extend(delta.tokens)
        if delta.finish_reason is not None:
            self.ended[delta.choice] = delta

    def check(self) -> None:
        """What it got is a beginning of what it gets alone, and all of it when it ended well."""
        asked = (self.prompt, self.count, self.seed, self.num_choices, self.adapter)
        expected = alone_choices(*asked) if self.is_healthy else []
        for choice, tokens in self.got.items():
            if self.is_healthy:
                assert tokens == expected[choice][: len(tokens)]
            else:
                assert tokens == []
        for choice, delta in self.ended.items():
            if POISON in self.prompt:
                assert isinstance(delta.error, NonFiniteLogitsError | StepFailedError)
            elif EXPLOSIVE in self.prompt:
                assert isinstance(delta.error, StepFailedError)
            else:
                assert delta.finish_reason is FinishReason.LENGTH and delta.error is None
                assert self.got[choice] == expected[choice]

    @property
    def is_healthy(self) -> bool:
        return POISON not in self.prompt and EXPLOSIVE not in self.prompt

    @property
    def is_over(self) -> bool:
        return self.is_aborted or len(self.ended) == self.num_choices


class Schedules(RuleBasedStateMachine):
    """Adds, steps, aborts, forks and breaks in any order; sizes are drawn per run."""

    @initialize(
        num_blocks=st.integers(1, 30),
        page_size=st.sampled_from([1, 2, 3, 4, 16]),
        batch=st.integers(1, 5),
        spare=st.integers(0, 30),
        per_request=st.integers(0, 9),
        steps=st.sampled_from([1, 1, 2, 5]),
        watermark=st.sampled_from([0.5, 0.95, 1.0]),
        prefix=st.booleans(),
        use_chunks=st.booleans(),
        num_replicas=st.integers(1, 3),
        has_faults=st.booleans(),
        max_num_loras=st.integers(1, 3),
    )
    def begin(self, **sizes: Any) -> None:
        page_size = sizes["page_size"]
        self.has_faults = sizes["has_faults"]
        self.asked: dict[RequestID, Asked] = {}
        self.num_forks = 0
        self.rig = Rig(
            num_blocks=max(sizes["num_blocks"], -(-(LONGEST + page_size) // page_size)),  # the longest fits alone
            page_size=page_size,
            prefix=sizes["prefix"],
            poison=POISON,
            explosive=EXPLOSIVE if self.has_faults else -1,
            num_replicas=sizes["num_replicas"],
            limits=SchedulerLimits(
                max_batch_size=sizes["batch"],
                max_step_tokens=sizes["batch"] + sizes["spare"],
                max_request_tokens=sizes["per_request"],
                max_num_steps=sizes["steps"],
                admission_watermark=sizes["watermark"],
                use_chunks=sizes["use_chunks"],
                max_num_loras=sizes["max_num_loras"],
            ),
        )
        self.rig.model.max_num_loras = sizes["max_num_loras"]
        self.names: dict[str, FakeAdapter] = {}
        self.num_loaded = 0

    @rule(
        prompt=st.sampled_from(PROMPTS),
        count=st.integers(1, 12),
        seed=st.one_of(st.none(), st.integers(0, 3)),
        num_choices=st.sampled_from([1, 1, 1, 2, 4]),
        priority=st.integers(-1, 1),
        salt=st.sampled_from([None, None, "a"]),
        bad=st.sampled_from([None] * 6 + [POISON, EXPLOSIVE]),
        name=st.sampled_from([None, None, "x", "y", "z"]),
    )
    def add(self, prompt: list[int], count: int, bad: int | None, **options: Any) -> None:
        if bad == POISON or (bad == EXPLOSIVE and self.has_faults):
            prompt = [*prompt[:-1], bad]
        seed, num_choices = options["seed"], options["num_choices"]
        adapter = self.names.get(options["name"])
        made = context(
            prompt,
            count,
            params(seed),
            num_choices=num_choices,
            priority=options["priority"],
            cache_salt=options["salt"],
            adapter=adapter,
        )
        self.rig.pipeline.add(made)
        self.asked[made.request_id] = Asked(tuple(prompt), count, seed, num_choices, adapter)

    @rule(name=st.sampled_from("xyz"))
    def load(self, name: str) -> None:
        """The name stands for new weights from now on; whoever began with the old ones keeps them."""
        self.num_loaded = self.num_loaded % 4 + 1
        self.names[name] = FakeAdapter(self.num_loaded)

    @rule(name=st.sampled_from("xyz"))
    def unload(self, name: str) -> None:
        self.names.pop(name, None)

    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            self._take(self.rig.step())

    @precondition(lambda self: any(not asked.is_over for asked in self.asked.values()))
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name, asked in self.asked.items() if not asked.is_over]))
        assert self.rig.pipeline.abort(name)
        assert not self.rig.pipeline.abort(name)
        self.asked[name].is_aborted = True

    @precondition(lambda self: any(not asked.is_over for asked in self.asked.values()))
    @rule(
        data=st.data(),
        shared=st.integers(0, 18),
        tail=st.lists(st.integers(0, 49), min_size=1, max_size=4),
        keeps_adapter=st.booleans(),
    )
    def fork(self, data: st.DataObject, shared: int, tail: list[int], keeps_adapter: bool) -> None:
        name = data.draw(st.sampled_from([name for name, asked in self.asked.items() if not asked.is_over]))
        parent = self.asked[name]
        whole = [token for token in [*parent.prompt, *parent.got.get(0, [])] if token < POISON]
        prompt = (whole[:shared] + tail)[:18]
        adapter = parent.adapter if keeps_adapter else self.names.get("x")
        made = context(prompt, 6, params(None), adapter=adapter)
        self.rig.pipeline.fork(name, made)
        self.asked[made.request_id] = Asked(tuple(prompt), 6, None, 1, adapter)
        self.num_forks += 1

    @precondition(lambda self: self.has_faults and not self.rig.scheduler._roster.suspects)
    @rule(times=st.integers(1, 1))
    def fail(self, times: int) -> None:
        """The next step fails, whoever takes part; each of its requests is then tried alone, and nobody is lost."""
        self.rig.model.num_faults = times
        self._take(self.rig.step())
        self.rig.model.num_faults = 0

    @rule()
    def forget(self) -> None:
        for kv in self.rig.kvs:
            kv.reset()

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.rig.check()
        for asked in self.asked.values():
            if not asked.is_aborted:
                asked.check()

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        self._take(self.rig.finish())
        for asked in self.asked.values():
            assert asked.is_over
            if not asked.is_aborted:
                asked.check()

    def _take(self, deltas: list[GenerationDelta]) -> None:
        for delta in deltas:
            self.asked[delta.request_id].take(delta)


# Failing schedules are shown as they were found: making them smaller takes longer than reading them.
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]
TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, phases=PHASES, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
class TestManySchedules(Schedules.TestCase):  # type: ignore[name-defined,misc]
    """The same, a thousand times (or as often as PUNA_SCHEDULES says), in longer runs."""

    settings = settings(
        max_examples=int(os.environ.get("PUNA_SCHEDULES", "1000")),
        stateful_step_count=50,
        deadline=None,
        phases=PHASES,
        suppress_health_check=list(HealthCheck),
    )


def test_a_fork_of_nobody_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="no request x to fork"):
        Rig().pipeline.fork(RequestID("x"), context([1]))
