"""The loop over a model without weights: batched, chunked, cached or preempted, the tokens agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.errors import InsufficientBlocksError, InvalidRequestError, QueueFullError
from puna.nn.rotary_embedding import DynamicRopeScalingParams, LongRoPEScalingParams, RotaryEmbedding
from puna.pipelines.batch import FinishReason, GenerationDelta
from puna.pipelines.context import EOSTracker, TextContext, TokenBuffer
from puna.pipelines.kv_cache import PagedKVCacheManager
from puna.pipelines.request import RequestID, SamplingParams
from puna.pipelines.sampling import NonFiniteLogitsError, Sampler
from puna.pipelines.scheduler import Scheduler, SchedulerLimits
from puna.pipelines.text_generation import TextGenerationPipeline
from support.fake_model import FakeModel, expected_greedy, fake_params, logits_for

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

    def __post_init__(self) -> None:
        regime = self.rope.regime if self.rope is not None else (lambda length: 0)
        self.model = FakeModel(regime=regime, poison=self.poison)
        self.kv = PagedKVCacheManager(fake_params(self.page_size, self.prefix), self.num_blocks)
        self.scheduler = Scheduler(self.kv, self.limits, self.rope)
        self.pipeline = TextGenerationPipeline(self.model, self.kv, self.scheduler, Sampler())

    def run(self, contexts: Sequence[TextContext]) -> dict[RequestID, list[GenerationDelta]]:
        """All deltas by request, with the books of the cache checked after every step."""
        for context in contexts:
            self.pipeline.add(context)
        deltas: dict[RequestID, list[GenerationDelta]] = {context.request_id: [] for context in contexts}
        for _ in range(10_000):
            if not self.pipeline.has_work:
                break
            for delta in self.pipeline.step():
                deltas[delta.request_id].append(delta)
            self.kv.check()
        assert not self.pipeline.has_work, "the loop does not end"
        assert self.kv.counts().used == 0
        return deltas

    def tokens(self, contexts: Sequence[TextContext]) -> list[list[int]]:
        deltas = self.run(contexts)
        return [[token for delta in deltas[c.request_id] for token in delta.tokens] for c in contexts]


def context(prompt: Sequence[int], count: int = 10, params: SamplingParams = GREEDY, **options: object) -> TextContext:
    return TextContext(
        tokens=TokenBuffer(np.array(prompt, dtype=np.int64)),
        max_length=len(prompt) + count,
        sampling_params=params,
        **options,  # type: ignore[arg-type]
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
    return 0


def test_step_gives_the_tokens_of_the_model() -> None:
    assert Rig().tokens([context([3, 1, 4, 1, 5])]) == [expected_greedy([3, 1, 4, 1, 5], 10, 50, one_regime)]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    num_requests=st.integers(1, 6),
    num_blocks=st.integers(12, 60),
    page_size=st.sampled_from([1, 3, 4, 16]),
    batch=st.integers(1, 5),
    budget=st.integers(5, 40),
    per_request=st.integers(0, 9),
    steps=st.sampled_from([1, 2, 5]),
    prefix=st.booleans(),
    greedy=st.booleans(),
)
def test_tokens_do_not_depend_on_scheduling(
    seed: int,
    num_requests: int,
    num_blocks: int,
    page_size: int,
    batch: int,
    budget: int,
    per_request: int,
    steps: int,
    prefix: bool,
    greedy: bool,
) -> None:
    prompts = prompts_of(seed, num_requests)
    num_blocks = max(num_blocks, -(-45 // page_size))  # the longest request fits alone
    params = [GREEDY if greedy else SamplingParams(seed=index, top_k=20) for index in range(num_requests)]
    limits = SchedulerLimits(
        max_batch_size=batch, max_step_tokens=budget, max_request_tokens=per_request, max_num_steps=steps
    )
    rig = Rig(num_blocks, page_size, prefix, limits=limits)
    together = rig.tokens([context(p, 12, s) for p, s in zip(prompts, params, strict=True)])
    alone = [Rig(prefix=False).tokens([context(p, 12, s)])[0] for p, s in zip(prompts, params, strict=True)]
    assert together == alone
    if greedy:
        assert alone == [expected_greedy(prompt, 12, 50, one_regime) for prompt in prompts]


def test_prompt_is_read_in_chunks_within_the_budget() -> None:
    rig = Rig(limits=SchedulerLimits(max_step_tokens=7))
    rig.tokens([context(list(range(20)), 2)])
    assert rig.model.steps == [[7], [7], [6], [1]]


def test_prompt_is_read_whole_without_chunks() -> None:
    rig = Rig(limits=SchedulerLimits(max_batch_size=2, max_step_tokens=7, use_chunks=False))
    rig.tokens([context(list(range(20)), 2), context([1, 2, 3], 3)])
    assert rig.model.steps == [[20], [1, 3], [1], [1]]


def test_running_request_and_new_prompt_share_a_step() -> None:
    rig = Rig(limits=SchedulerLimits(max_batch_size=2, max_step_tokens=8))
    rig.pipeline.add(context([1, 2, 3], 20))
    rig.pipeline.step()
    rig.pipeline.add(context(list(range(10)), 3))
    rig.pipeline.step()
    assert rig.model.steps[-1] == [1, 7]


def test_cached_prefix_is_not_computed_again() -> None:
    rig = Rig()
    prompt = list(range(17))
    first, second = context(prompt, 3), context(prompt, 3)
    one = rig.tokens([first])
    rig.model.steps.clear()
    deltas = rig.run([second])[second.request_id]
    assert rig.model.steps[0] == [1]  # 16 tokens are four full pages; the last token is always computed
    assert [token for delta in deltas for token in delta.tokens] == one[0]
    assert {delta.num_cached_tokens for delta in deltas} == {16}


def test_hit_never_covers_the_whole_prompt() -> None:
    rig = Rig()
    prompt = list(range(16))
    rig.tokens([context(prompt, 5)])
    rig.model.steps.clear()
    rig.tokens([context(prompt, 1)])
    assert rig.model.steps == [[4]]


def test_salt_separates_tenants() -> None:
    rig = Rig()
    prompt = list(range(17))
    rig.tokens([context(prompt, 1, cache_salt="a")])
    rig.model.steps.clear()
    rig.tokens([context(prompt, 1, cache_salt="b")])
    rig.tokens([context(prompt, 1, cache_salt="a")])
    assert rig.model.steps == [[17], [1]]


def test_preemption_computes_the_youngest_anew() -> None:
    prompts = prompts_of(5, 4, 20)
    rig = Rig(num_blocks=15, prefix=False, limits=SchedulerLimits(max_batch_size=4, admission_watermark=1.0))
    tokens = rig.tokens([context(prompt, 30) for prompt in prompts])
    assert rig.scheduler.num_preemptions > 0
    assert tokens == [expected_greedy(prompt, 30, 50, one_regime) for prompt in prompts]


def test_tokens_are_given_out_once_across_preemptions() -> None:
    rig = Rig(num_blocks=12, prefix=False, limits=SchedulerLimits(max_batch_size=3, admission_watermark=1.0))
    contexts = [context([index] * 8, 25) for index in range(3)]
    deltas = rig.run(contexts)
    assert rig.scheduler.num_preemptions > 0
    assert all(sum(len(delta.tokens) for delta in deltas[c.request_id]) == 25 for c in contexts)


def test_watermark_keeps_pages_for_running_requests() -> None:
    limits = SchedulerLimits(max_batch_size=4, admission_watermark=0.5)
    rig = Rig(num_blocks=10, prefix=False, limits=limits)
    rig.pipeline.add(context([1] * 12, 2))
    rig.pipeline.add(context([2] * 12, 2))
    rig.pipeline.step()
    assert rig.model.steps == [[12]]


def test_request_that_outgrows_the_cache_alone_ends_with_the_numbers() -> None:
    rig = Rig(num_blocks=3)
    request = context([1] * 10, 10)
    deltas = rig.run([request])[request.request_id]
    assert sum(len(delta.tokens) for delta in deltas) == 3  # 12 tokens are stored; the 13th was drawn from them
    assert deltas[-1].finish_reason is FinishReason.ERROR
    assert isinstance(deltas[-1].error, InsufficientBlocksError)
    assert (deltas[-1].error.needed, deltas[-1].error.free, deltas[-1].error.total) == (1, 0, 3)


def test_preempted_request_that_fits_no_more_ends() -> None:
    rig = Rig(num_blocks=3, prefix=False, limits=SchedulerLimits(max_batch_size=2, admission_watermark=1.0))
    older, younger = context([1] * 4, 3), context([2] * 8, 20)
    deltas = rig.run([older, younger])
    assert deltas[older.request_id][-1].finish_reason is FinishReason.LENGTH
    assert deltas[younger.request_id][-1].finish_reason is FinishReason.ERROR


def test_prompt_that_can_never_fit_is_refused_with_the_excess() -> None:
    rig = Rig(num_blocks=3)
    with pytest.raises(InvalidRequestError, match=r"13 tokens, 1 more than the KV cache holds \(12\)"):
        rig.pipeline.add(context([1] * 13))


def test_waiting_line_has_an_end() -> None:
    rig = Rig(limits=SchedulerLimits(max_waiting=1))
    rig.pipeline.add(context([1]))
    with pytest.raises(QueueFullError):
        rig.pipeline.add(context([1]))


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"json_schema": "{}"}, "response_format"),
        ({"grammar": "root ::= x"}, "response_format"),
        ({"matcher": object()}, "response_format"),
        ({"target_endpoint": "tcp://elsewhere"}, "target_endpoint"),
        ({"params": SamplingParams(thinking_temperature=1.0)}, "thinking_temperature"),
    ],
)
def test_what_is_not_there_is_refused(options: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequestError, match=param):
        Rig().pipeline.add(context([1], 5, **options))  # type: ignore[arg-type]


def test_equal_request_ids_are_refused() -> None:
    rig = Rig()
    rig.pipeline.add(context([1], request_id=RequestID("a")))
    with pytest.raises(InvalidRequestError, match="a is taken"):
        rig.pipeline.add(context([1], request_id=RequestID("a")))


def test_end_of_sequence_ends_with_its_token() -> None:
    tokens = expected_greedy([1, 2, 3], 10, 50, one_regime)
    request = context([1, 2, 3], 10, eos_tracker=EOSTracker(frozenset({tokens[4]})))
    end = tokens.index(tokens[4])
    deltas = Rig().run([request])[request.request_id]
    assert [token for delta in deltas for token in delta.tokens] == tokens[: end + 1]
    assert deltas[-1].finish_reason is FinishReason.STOP


def test_tokens_behind_the_end_of_a_turn_are_dropped_and_not_published() -> None:
    tokens = expected_greedy([1, 2, 3], 10, 50, one_regime)
    request = context([1, 2, 3], 30, eos_tracker=EOSTracker(frozenset({tokens[1]})))
    rig = Rig(page_size=1, limits=SchedulerLimits(max_num_steps=8))
    assert rig.tokens([request]) == [tokens[: tokens.index(tokens[1]) + 1]]
    assert rig.kv.counts().cached == len(request.tokens) - 1


def test_turn_of_several_passes_equals_single_steps() -> None:
    prompts = prompts_of(9, 3)
    params = [SamplingParams(seed=seed, temperature=0.8, repetition_penalty=1.3) for seed in range(3)]
    outcomes = []
    for steps in (1, 4):
        rig = Rig(limits=SchedulerLimits(max_batch_size=3, max_num_steps=steps))
        outcomes.append(rig.tokens([context(p, 15, s) for p, s in zip(prompts, params, strict=True)]))
    assert outcomes[0] == outcomes[1]


def test_nan_ends_one_request_and_leaves_the_others() -> None:
    rig = Rig(poison=49)
    good, bad = context([1, 2, 3], 6), context([4, 49, 5], 6)
    deltas = rig.run([good, bad])
    assert isinstance(deltas[bad.request_id][-1].error, NonFiniteLogitsError)
    assert deltas[bad.request_id][-1].finish_reason is FinishReason.ERROR
    tokens = [token for delta in deltas[good.request_id] for token in delta.tokens]
    assert tokens == expected_greedy([1, 2, 3], 6, 50, one_regime)


@pytest.mark.parametrize("steps_before", [0, 1, 3])
def test_abort_gives_all_pages_back(steps_before: int) -> None:
    rig = Rig(limits=SchedulerLimits(max_batch_size=2, max_step_tokens=8))
    request, other = context(list(range(20)), 10), context([5, 6], 4)
    rig.pipeline.add(request)
    rig.pipeline.add(other)
    for _ in range(steps_before):
        rig.pipeline.step()
    assert rig.pipeline.abort(request.request_id)
    assert not rig.pipeline.abort(request.request_id)
    while rig.pipeline.has_work:
        rig.pipeline.step()
    assert rig.kv.counts().used == 0
    assert other.tokens.generated.tolist() == expected_greedy([5, 6], 4, 50, one_regime)


LONG = RotaryEmbedding(4, 4, 10000.0, LongRoPEScalingParams([1.0, 1.0], [2.0, 2.0], 16, 64))


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("prompt_length", [3, 15, 16, 17, 30])
def test_longrope_crossing_is_computed_anew(prompt_length: int, steps: int) -> None:
    prompt = list(range(prompt_length))
    rig = Rig(rope=LONG, limits=SchedulerLimits(max_step_tokens=8, max_num_steps=steps))
    assert rig.tokens([context(prompt, 20)]) == [expected_greedy(prompt, 20, 50, LONG.regime)]
    rereads = [step for step in rig.model.steps if step == [8]]
    assert len(rereads) == prompt_length // 8 + (2 if prompt_length <= 16 else 0)


def test_longrope_prefix_of_the_other_regime_is_no_hit() -> None:
    rig = Rig(rope=LONG)
    rig.tokens([context(list(range(13)), 1)])
    rig.model.steps.clear()
    rig.tokens([context(list(range(20)), 1)])
    assert rig.model.steps == [[20]]


DYNAMIC = RotaryEmbedding(4, 4, 10000.0, DynamicRopeScalingParams(2.0, 8))


def test_dynamic_base_is_the_admission_length_through_preemption() -> None:
    prompts = prompts_of(5, 4, 20)
    limits = SchedulerLimits(max_batch_size=4, admission_watermark=1.0)
    rig = Rig(num_blocks=15, rope=DYNAMIC, limits=limits)
    tokens = rig.tokens([context(prompt, 30) for prompt in prompts])
    assert rig.scheduler.num_preemptions > 0
    for prompt, got in zip(prompts, tokens, strict=True):
        regime = DYNAMIC.regime(len(prompt))
        assert got == expected_greedy(prompt, 30, 50, lambda _length, regime=regime: regime)  # type: ignore[misc]


def test_fake_model_sees_regimes() -> None:
    assert not np.array_equal(logits_for([1, 2], 0, 50), logits_for([1, 2], 1, 50))
