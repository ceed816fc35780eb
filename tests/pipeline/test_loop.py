"""The loop over a model without weights: batched, chunked, cached or preempted, the tokens agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.errors import InsufficientBlocksError, InvalidRequestError, QueueFullError, StepFailedError
from puna.nn.rotary_embedding import DynamicRopeScalingParams, LongRoPEScalingParams, RotaryEmbedding
from puna.pipelines.batch import FinishReason
from puna.pipelines.context import EOSTracker
from puna.pipelines.request import RequestID
from puna.pipelines.sampling import NonFiniteLogitsError
from puna.pipelines.sampling_params import SamplingParams
from puna.pipelines.scheduler import SchedulerLimits
from support.fake_loop import GREEDY, Rig, context, one_regime, prompts_of
from support.fake_model import expected_greedy, logits_for


def test_step_gives_the_tokens_of_the_model() -> None:
    assert Rig().tokens([context([3, 1, 4, 1, 5])]) == [expected_greedy([3, 1, 4, 1, 5], 10, 50, one_regime)]


@settings(max_examples=30, deadline=None)
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


class TestChoices:
    """Several continuations of one prompt: it is read once, and each is what it is alone."""

    def test_a_prompt_is_read_once(self) -> None:
        rig = Rig(limits=SchedulerLimits(max_batch_size=4))
        params = SamplingParams(seed=5, temperature=1.5)
        deltas = rig.run([request := context(list(range(10)), 6, params, num_choices=3)])[request.request_id]
        assert rig.model.steps == [[10]] + [[1, 1, 1]] * 5
        found = [[t for delta in deltas if delta.choice == choice for t in delta.tokens] for choice in range(3)]
        assert len({tuple(tokens) for tokens in found}) == 3
        assert found[0] == Rig().tokens([context(list(range(10)), 6, params)])[0]
        for choice in (1, 2):
            assert found[choice] == Rig().tokens([context(list(range(10)), 6, params, choice=choice)])[0]

    def test_more_choices_than_a_step_holds_take_turns(self) -> None:
        rig = Rig(limits=SchedulerLimits(max_batch_size=2))
        deltas = rig.run([context(list(range(6)), 4, num_choices=5), context([1, 2], 3)])
        assert sum(len(delta.tokens) for some in deltas.values() for delta in some) == 5 * 4 + 3
        assert max(len(step) for step in rig.model.steps) == 2

    def test_one_choice_can_be_ended(self) -> None:
        rig = Rig()
        request = context([1, 2, 3], 8, num_choices=2)
        rig.pipeline.add(request)
        assert not rig.pipeline.abort(request.request_id, choice=1)  # it does not go on by itself yet
        rig.step()
        assert rig.pipeline.abort(request.request_id, choice=1)
        assert {delta.choice for delta in rig.finish()} == {0}

    def test_a_prompt_that_fails_fails_for_all(self) -> None:
        rig = Rig(poison=7)
        deltas = rig.run([request := context([7], num_choices=2)])[request.request_id]
        assert [delta.choice for delta in deltas] == [0, 1]
        assert all(isinstance(delta.error, NonFiniteLogitsError) for delta in deltas)

    def test_no_choice_is_refused(self) -> None:
        with pytest.raises(InvalidRequestError, match="n: must be at least 1, got 0"):
            context([1], num_choices=0)


class TestFailures:
    """A step that fails takes nobody along but who is at fault."""

    def test_the_others_of_a_step_that_explodes_go_on(self) -> None:
        rig = Rig(explosive=49)
        good, bad, other = context([1, 2, 3], 6), context([4, 49, 5], 6), context([6], 6)
        deltas = rig.run([good, bad, other])
        assert isinstance(deltas[bad.request_id][-1].error, StepFailedError)
        assert "RuntimeError: a step exploded" in str(deltas[bad.request_id][-1].error)
        for request in (good, other):
            tokens = [token for delta in deltas[request.request_id] for token in delta.tokens]
            assert tokens == expected_greedy(request.tokens.prompt.tolist(), 6, 50, one_regime)
        assert rig.pipeline.counts().num_retries == 3

    def test_one_failure_is_forgiven(self) -> None:
        rig = Rig()
        rig.model.num_faults = 1
        assert rig.tokens([context([1, 2, 3], 6)]) == [expected_greedy([1, 2, 3], 6, 50, one_regime)]

    def test_an_error_of_a_processor_ends_its_request(self) -> None:
        def broken(_logits: object, _context: object) -> None:
            raise ZeroDivisionError("by zero")

        rig = Rig()
        bad = context([1], 5, SamplingParams(temperature=0, logits_processors=(broken,)))
        good = context([2], 5)
        deltas = rig.run([bad, good])
        assert isinstance(deltas[bad.request_id][-1].error, StepFailedError)
        assert deltas[good.request_id][-1].finish_reason is FinishReason.LENGTH


class TestUrgency:
    """Priorities, deadlines, and who gives way."""

    def test_the_urgent_one_displaces_the_least_urgent_one(self) -> None:
        rig = Rig(limits=SchedulerLimits(max_batch_size=2))
        first, second = context([1], 20, priority=5), context([2], 20, priority=3)
        rig.pipeline.add(first)
        rig.pipeline.add(second)
        rig.step()
        urgent = context([3], 2, priority=-1)
        rig.pipeline.add(urgent)
        (one, two) = rig.step()
        assert {one.request_id, two.request_id} == {second.request_id, urgent.request_id}
        rig.finish()
        for request in (first, second, urgent):
            prompt = request.tokens.all[:1].tolist()
            count = len(request.output_tokens)
            assert request.output_tokens.tolist() == expected_greedy(prompt, count, 50, one_regime)

    def test_equals_do_not_displace_each_other(self) -> None:
        rig = Rig(limits=SchedulerLimits(max_batch_size=1))
        first, second = context([1], 5), context([2], 5)
        deltas = list(rig.run([first, second]).values())
        assert rig.scheduler.num_preemptions == 0 and [len(some) for some in deltas] == [5, 5]

    def test_a_long_prompt_does_not_hold_up_who_generates(self) -> None:
        rig = Rig(num_blocks=64, limits=SchedulerLimits(max_batch_size=3, max_step_tokens=4))
        rig.pipeline.add(context([1], 30))
        rig.step()
        rig.pipeline.add(context(list(range(30)), 2))
        for _ in range(5):
            assert len(rig.step()) == 1
        assert rig.model.steps[1:] == [[1, 3]] * 5

    @pytest.mark.parametrize("steps_before", [0, 1, 4])
    def test_a_deadline_ends_a_request_wherever_it_is(self, steps_before: int) -> None:
        now = [0.0]
        limits = SchedulerLimits(max_batch_size=1, max_step_tokens=8)
        rig = Rig(limits=limits, clock=lambda: now[0])
        late = context(list(range(20)), 10, deadline=5.0, num_choices=2)
        waiting = context([1], 3, deadline=5.0)
        other = context([2], 3, deadline=7.0)
        for request in (late, waiting, other):
            rig.pipeline.add(request)
        for _ in range(steps_before):
            rig.step()
        now[0] = 5.0
        deltas = rig.finish()
        ends = [delta for delta in deltas if delta.finish_reason is FinishReason.ABORT]
        assert [(e.request_id, e.choice) for e in ends] == [
            (late.request_id, 0),
            (late.request_id, 1),
            (waiting.request_id, 0),
        ]
        assert sum(len(d.tokens) for d in deltas if d.request_id == other.request_id) == 3


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_four_times_too_little_cache_changes_no_text_and_starves_nobody(page_size: int) -> None:
    prompts = prompts_of(3, 16, 20)
    needed = sum(-(-(len(prompt) + 20) // page_size) for prompt in prompts)
    limits = SchedulerLimits(max_batch_size=16, admission_watermark=1.0)
    tight = Rig(num_blocks=needed // 4, page_size=page_size, limits=limits)
    contexts = [context(prompt, 20) for prompt in prompts]
    ends: list[object] = []
    for request in contexts:
        tight.pipeline.add(request)
    for delta in tight.finish(most_steps=16 * 40):
        if delta.finish_reason is not None:
            ends.append(delta.request_id)
    assert tight.scheduler.num_preemptions > 0
    assert len(ends) == 16 and ends[0] == contexts[0].request_id  # the oldest was never interrupted
    assert [c.output_tokens.tolist() for c in contexts] == [expected_greedy(p, 20, 50, one_regime) for p in prompts]


class TestReplicas:
    """Requests go where most of them is cached, as long as nobody is left without work."""

    def rig(self) -> Rig:
        return Rig(num_replicas=2, limits=SchedulerLimits(max_batch_size=8, max_step_tokens=64))

    def test_work_is_divided(self) -> None:
        rig = self.rig()
        for number in range(6):
            rig.pipeline.add(context([number], 3))
        batch = rig.scheduler.schedule()
        assert [len(rows) for rows in batch.replicas] == [3, 3]

    def test_a_prompt_goes_where_it_is_cached(self) -> None:
        rig = self.rig()
        stem = list(range(20))
        rig.run([context([1, 2], 9), context(stem, 2)])  # the second one on the second replica
        assert [kv.counts().cached > 4 for kv in rig.kvs] == [False, True]
        rig.pipeline.add(context([3], 9))
        rig.step()
        rig.pipeline.add(request := context([*stem, 7], 2))
        rig.step()
        assert request.cached_prefix_length == 20
        rig.finish()

    def test_a_cached_prefix_does_not_leave_a_replica_idle(self) -> None:
        rig = self.rig()
        stem = list(range(20))
        rig.tokens([context(stem, 2)])
        for number in range(6):
            rig.pipeline.add(context([*stem, number], 2))
        assert [len(rows) for rows in rig.scheduler.schedule().replicas] == [4, 2]
