"""Tokens and state of one request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.errors import InvalidRequestError
from puna.pipelines.context import (
    BatchType,
    EOSTracker,
    GenerationStatus,
    LogProbabilities,
    TextContext,
    TextGenerationInputs,
    TokenBuffer,
)
from puna.pipelines.sampling_params import SamplingParams


def buffer(*tokens: int) -> TokenBuffer:
    return TokenBuffer(np.array(tokens, dtype=np.int64))


def context(*tokens: int, **options: Any) -> TextContext:
    return TextContext(tokens=buffer(*tokens), **{"max_length": 16, **options})


class TestTokenBuffer:
    def test_a_fresh_prompt_is_all_active(self) -> None:
        tokens = buffer(3, 4, 5)
        assert (len(tokens), tokens.prompt_length, tokens.generated_length) == (3, 3, 0)
        assert (tokens.processed_length, tokens.active_length, tokens.current_position) == (0, 3, 3)
        assert tokens.active.tolist() == tokens.all.tolist() == tokens.prompt.tolist() == [3, 4, 5]
        assert tokens.generated.tolist() == []

    def test_a_generated_token_becomes_the_only_active_one(self) -> None:
        tokens = buffer(3, 4, 5)
        tokens.advance_with_token(9)
        assert (tokens.generated.tolist(), tokens.active.tolist(), tokens.processed_length) == ([9], [9], 3)
        assert tokens.current_position == 4

    def test_chunks(self) -> None:
        tokens = buffer(1, 2, 3, 4, 5)
        tokens.chunk(2)
        assert (tokens.active.tolist(), tokens.is_chunked, tokens.current_position) == ([1, 2], True, 2)
        with pytest.raises(ValueError, match="wait behind"):
            tokens.advance_with_token(9)
        tokens.advance_chunk()
        assert (tokens.active.tolist(), tokens.processed_length, tokens.is_chunked) == ([3, 4, 5], 2, False)
        with pytest.raises(ValueError, match="no tokens wait"):
            tokens.advance_chunk()

    @pytest.mark.parametrize("n", [-1, 0, 3, 4])
    def test_a_chunk_is_a_proper_part(self, n: int) -> None:
        with pytest.raises(ValueError, match="chunk"):
            buffer(1, 2, 3).chunk(n)

    def test_skipping_leaves_one_token(self) -> None:
        tokens = buffer(1, 2, 3)
        tokens.skip_processing(2)
        assert tokens.active.tolist() == [3]
        for n in (1, -1):
            with pytest.raises(ValueError):
                tokens.skip_processing(n)
        tokens.rewind_processing(2)
        assert tokens.active.tolist() == [1, 2, 3]
        with pytest.raises(ValueError):
            tokens.rewind_processing(1)

    def test_each_generated_token_is_streamed_once(self) -> None:
        tokens = buffer(1)
        assert not tokens.has_outstanding_generated_tokens
        tokens.advance_with_token(2)
        tokens.advance_with_token(3)
        assert tokens.has_outstanding_generated_tokens
        assert tokens.consume_recently_generated_tokens().tolist() == [2, 3]
        assert tokens.consume_recently_generated_tokens().tolist() == []

    @pytest.mark.parametrize("bad", [np.zeros(0, np.int64), np.zeros((2, 2), np.int64)])
    def test_shapes_are_checked(self, bad: Any) -> None:
        with pytest.raises(ValueError):
            TokenBuffer(bad)

    @pytest.mark.parametrize("bad", [np.zeros(2, np.int32), [1, 2]])
    def test_types_are_checked(self, bad: Any) -> None:
        with pytest.raises(TypeError):
            TokenBuffer(bad)

    def test_the_caller_keeps_his_array_and_cannot_write_through_views(self) -> None:
        source = np.array([1, 2], dtype=np.int64)
        tokens = TokenBuffer(source)
        source[0] = 7
        assert tokens.all.tolist() == [1, 2]
        with pytest.raises(ValueError):
            tokens.active[0] = 5

    @given(st.lists(st.integers(0, 99), min_size=1, max_size=300), st.lists(st.integers(0, 99), max_size=300))
    def test_growth_loses_nothing(self, prompt: list[int], output: list[int]) -> None:
        tokens = buffer(*prompt)
        for token in output:
            tokens.advance_with_token(token)
        assert tokens.all.tolist() == prompt + output
        assert tokens.generated.tolist() == output
        assert tokens.processed_length + tokens.active_length == len(tokens)


class TestTextContext:
    def test_update_appends_and_counts_up_to_the_end(self) -> None:
        made = context(1, 2, max_length=4)
        made.update(7)
        assert (made.status, made.is_done, made.is_initial_prompt) == (GenerationStatus.ACTIVE, False, False)
        made.update(8)
        assert made.status is GenerationStatus.MAXIMUM_LENGTH
        assert made.is_done

    def test_the_end_token_is_part_of_what_was_generated(self) -> None:
        made = context(1, eos_tracker=EOSTracker(frozenset({5})))
        made.update(5)
        assert made.status is GenerationStatus.END_OF_SEQUENCE
        assert made.tokens.generated.tolist() == [5]

    def test_an_end_token_in_the_prompt_ends_nothing(self) -> None:
        made = context(5, eos_tracker=EOSTracker(frozenset({5})))
        made.update(6)
        assert not made.is_done

    def test_sequences_end_too(self) -> None:
        made = context(1, eos_tracker=EOSTracker(eos_sequences=((2, 3),)))
        for token, done in ((3, False), (2, False), (3, True)):
            made.update(token)
            assert made.is_done is done

    def test_ignore_eos_leaves_only_stop_strings(self) -> None:
        tracker = EOSTracker(frozenset({5}), ((6,),), ("END",))
        made = context(1, eos_tracker=tracker, sampling_params=SamplingParams(ignore_eos=True))
        made.update(5)
        made.update(6)
        assert not made.is_done
        assert made.eos_tracker.eos_stop_strings == ("END",)

    def test_a_token_sampled_after_a_chunk_is_dropped(self) -> None:
        made = context(1, 2, 3)
        made.tokens.chunk(2)
        made.update(9, LogProbabilities([0.0], [{9: 0.0}]))
        assert (made.tokens.all.tolist(), made.tokens.active.tolist()) == ([1, 2, 3], [3])
        output = made.to_generation_output()
        assert (output.tokens, output.log_probabilities) == ([], None)

    @pytest.mark.parametrize("token", [-1, 10])
    def test_a_token_outside_the_vocabulary_is_an_error(self, token: int) -> None:
        with pytest.raises(RuntimeError, match="vocabulary"):
            context(1, vocab_size=10).update(token)

    def test_prompts_are_checked(self) -> None:
        with pytest.raises(InvalidRequestError, match="max_length"):
            context(1, 2, 3, max_length=2)
        with pytest.raises(InvalidRequestError, match="token 11"):
            context(1, 11, vocab_size=10)

    def test_output_is_given_out_once(self) -> None:
        made = context(1, cached_prefix_length=3)
        record = LogProbabilities([-0.5], [{7: -0.5}])
        made.update(7, record)
        output = made.to_generation_output()
        assert (output.tokens, output.log_probabilities, output.num_cached_tokens) == ([7], [record], 3)
        assert (output.request_id, output.final_status) == (made.request_id, GenerationStatus.ACTIVE)
        assert made.to_generation_output().tokens == []

    def test_reset_makes_everything_a_prompt_but_keeps_what_was_streamed(self) -> None:
        made = context(1, 2)
        made.update(7)
        made.to_generation_output()
        made.reset()
        assert made.is_initial_prompt
        assert (made.tokens.prompt.tolist(), made.tokens.active.tolist()) == ([1, 2, 7], [1, 2, 7])
        assert (made.admission_length, made.output_tokens.tolist()) == (2, [7])
        made.update(8)
        assert made.to_generation_output().tokens == [8]

    def test_a_sequence_may_span_a_reset(self) -> None:
        made = context(1, eos_tracker=EOSTracker(eos_sequences=((2, 3),)))
        made.update(2)
        made.reset()
        made.update(3)
        assert made.status is GenerationStatus.END_OF_SEQUENCE

    def test_available_steps(self) -> None:
        made = context(1, 2, 3)
        assert made.compute_num_available_steps(10) == 10
        made.update(4)
        assert made.compute_num_available_steps(10) == 7

    def test_end_tokens_are_masked_until_enough_was_generated(self) -> None:
        tracker = EOSTracker(frozenset({5, 3}))
        made = context(1, eos_tracker=tracker, sampling_params=SamplingParams(min_tokens=2))
        assert [mask.tolist() for mask in made.get_min_token_logit_mask(3)] == [[3, 5], [3, 5], []]
        made.update(8)
        made.reset()
        assert [mask.tolist() for mask in made.get_min_token_logit_mask(2)] == [[3, 5], []]

    def test_identities_differ(self) -> None:
        assert context(1).request_id != context(1).request_id


def test_a_turn_flattens_replica_by_replica() -> None:
    first = context(1, sampling_params=SamplingParams(logprobs=2))
    second = context(2, sampling_params=SamplingParams(prompt_logprobs=0))
    second.update(3)
    turn = TextGenerationInputs(batches=[[first], [second]], num_steps=2)
    assert turn.flat_batch == [first, second]
    assert (turn.batch_type, turn.enable_log_probs) == (BatchType.CE, True)
    assert (turn.batch_top_log_probs, turn.batch_echo) == ([2, 0], [False, True])
    assert TextGenerationInputs(batches=[[second]]).batch_type is BatchType.TG
    with pytest.raises(ValueError, match="num_steps"):
        TextGenerationInputs(batches=[], num_steps=0)


def test_records_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError):
        LogProbabilities([0.0], [])
    with pytest.raises(ValueError):
        EOSTracker(eos_sequences=((),))


def test_tokens_that_were_not_drawn_are_read_with_the_active_ones() -> None:
    buffer = TokenBuffer(np.arange(3, dtype=np.int64))
    buffer.advance_with_token(9)
    buffer.append_unread([7] * 100)
    assert (len(buffer), buffer.processed_length, buffer.active_length) == (104, 3, 101)
    assert buffer.consume_recently_generated_tokens().tolist() == [9] + [7] * 100
    buffer.chunk(50)
    with pytest.raises(ValueError, match="wait behind"):
        buffer.append_unread([1])
