"""`LLM` as people use it: forms of prompts, results, choices, and what is refused."""

from __future__ import annotations

import io
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import puna
from puna import LLM, BeamSearchParams, RepetitionDetection, SamplingParams
from puna.entrypoints.outputs import RequestOutput
from puna.errors import InvalidRequestError, UnsupportedModelError
from puna.pipelines.lib.log_probabilities import log_softmax
from puna.pipelines.sampling.sampler import NothingAllowedError
from support.checkpoints import tiny_config, tiny_tensors, write_huggingface
from support.tiny_model import write_tiny_model

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
VOCABULARY = 832  # the tokenizer has as many: no row of the output matrix is padding
FOX = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny"), vocab_size=VOCABULARY))


@pytest.fixture(scope="module")
def llm(path: str) -> LLM:
    return LLM(path, block_size=8, max_num_seqs=8)


def tokens(output: RequestOutput, index: int = 0) -> tuple[int, ...]:
    return output.outputs[index].token_ids


class TestPrompts:
    def test_all_forms_of_a_prompt_are_the_same_prompt(self, llm: LLM) -> None:
        ids = llm.tokenize(FOX)
        forms: list[Any] = [FOX, ids, tuple(ids), np.array(ids), {"prompt": FOX}, {"prompt_token_ids": ids}]
        outputs = [llm.generate(form, GREEDY) for form in forms] + [[o] for o in llm.generate(forms, GREEDY)]
        assert {tokens(output) for (output,) in outputs} == {tokens(outputs[0][0])}
        assert [output.prompt for (output,) in outputs[:6]] == [FOX, None, None, None, FOX, None]
        assert all(output.prompt_token_ids == tuple(ids) and output.finished for (output,) in outputs)

    def test_one_set_of_values_each(self, llm: LLM) -> None:
        short, long = llm.generate(["a", "b"], [SamplingParams(max_tokens=2, ignore_eos=True), GREEDY])
        assert (len(tokens(short)), len(tokens(long))) == (2, 8)
        with pytest.raises(InvalidRequestError, match="1 sets of values for 2 prompts"):
            llm.generate(["a", "b"], [GREEDY])

    @pytest.mark.parametrize(
        ("prompt", "message"),
        [
            ({"text": "x"}, "an object with prompt or prompt_token_ids is expected"),
            ([1.5], "expected text or token ids, got float"),
            (3, "expected text or token ids, got int"),
            ([[]], "expected text or token ids, got list"),
            ([5000], "token 5000 is outside the vocabulary of"),
        ],
    )
    def test_other_forms_are_refused(self, llm: LLM, prompt: Any, message: str) -> None:
        with pytest.raises(InvalidRequestError, match=message):
            llm.generate(prompt, GREEDY)

    def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(self, llm: LLM) -> None:
        with pytest.raises(InvalidRequestError, match="it has 256 tokens, 1 more than the context of 256 tokens"):
            llm.generate([[5] * 256], GREEDY)

    @pytest.mark.parametrize(("keep", "left"), [(10, 10), (-1, 248), (400, None)])
    def test_truncation_is_asked_for_and_reported(self, llm: LLM, keep: int, left: int | None) -> None:
        ids = list(range(3, 303))
        params = SamplingParams(temperature=0, max_tokens=8, truncate_prompt_tokens=keep, ignore_eos=True)
        if left is None:
            with pytest.raises(InvalidRequestError, match="it has 300 tokens"):
                llm.generate([ids], params)
            return
        (output,) = llm.generate([ids], params)
        assert output.prompt_token_ids == tuple(ids[-left:])
        assert (output.num_truncated_tokens, len(tokens(output))) == (300 - left, 8)

    def test_conversations(self, llm: LLM) -> None:
        one = [{"role": "user", "content": "Hello"}]
        rendered = llm.render(one)
        assert rendered.text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        assert rendered.token_ids == tuple(llm.tokenize(rendered.text, add_special_tokens=False))
        (single,), many = llm.chat(one, GREEDY), llm.chat([one, one], GREEDY)
        (raw,) = llm.generate([list(rendered.token_ids)], GREEDY)
        assert [tokens(output) for output in (single, *many)] == [tokens(raw)] * 3
        assert (single.prompt, single.prompt_token_ids) == (rendered.text, rendered.token_ids)
        (open_ended,) = llm.chat(one, GREEDY, add_generation_prompt=False)
        assert open_ended.prompt == "<|im_start|>user\nHello<|im_end|>\n"

    def test_text_to_tokens_and_back(self, llm: LLM) -> None:
        assert llm.detokenize(llm.tokenize(FOX, add_special_tokens=False)) == FOX


class TestResults:
    def test_streams_grow_into_the_whole(self, llm: LLM) -> None:
        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=1)
        whole = llm.generate(["Hello", FOX], params)
        seen: dict[str, list[RequestOutput]] = {}
        for output in llm.generate(["Hello", FOX], params, stream=True):
            seen.setdefault(output.prompt or "", []).append(output)
        for expected in whole:
            history = seen[expected.prompt or ""]
            assert [len(tokens(output)) for output in history] == list(range(1, 13))
            assert [output.finished for output in history] == [False] * 11 + [True]
            for earlier, later in itertools.pairwise(history):
                assert later.outputs[0].text.startswith(earlier.outputs[0].text)
            assert history[-1].outputs == expected.outputs

    def test_timings_and_cached_tokens(self, path: str) -> None:
        llm = LLM(path, block_size=4)
        first, second = (llm.generate(FOX, GREEDY)[0] for _ in range(2))
        assert first.num_cached_tokens == 0 < second.num_cached_tokens < len(second.prompt_token_ids)
        times = second.timings
        assert times.first_token_s is not None and times.last_token_s is not None and times.finished_s is not None
        assert 0 < times.first_token_s <= times.last_token_s <= times.finished_s < 60

    def test_a_drawn_seed_is_reported_and_repeats_the_text(self, llm: LLM) -> None:
        params = SamplingParams(max_tokens=12, ignore_eos=True)
        first, second = llm.generate(["Hello", "Hello"], params)
        assert first.seed != second.seed and tokens(first) != tokens(second)
        (again,) = llm.generate("Hello", SamplingParams(max_tokens=12, ignore_eos=True, seed=first.seed))
        assert tokens(again) == tokens(first)

    def test_a_seed_of_the_llm_repeats_a_program(self, path: str) -> None:
        found = [
            [(o.seed, tokens(o)) for o in LLM(path, seed=5).generate(["a", "b"], SamplingParams(max_tokens=5))]
            for _ in range(2)
        ]
        assert found[0] == found[1] and found[0][0][0] != found[0][1][0]

    def test_stop_strings_can_be_kept(self, llm: LLM) -> None:
        text = llm.generate(FOX, GREEDY)[0].outputs[0].text
        stop = text[3:5]
        for keep in (False, True):
            params = SamplingParams(
                temperature=0, max_tokens=8, ignore_eos=True, stop=stop, include_stop_str_in_output=keep
            )
            (made,) = llm.generate(FOX, params)[0].outputs
            end = text.index(stop) + (len(stop) if keep else 0)
            assert (made.text, made.finish_reason, made.stop_reason) == (text[:end], "stop", stop)

    def test_what_ended_a_text_is_told(self, llm: LLM) -> None:
        third = tokens(llm.generate(FOX, GREEDY)[0])[2]
        params = SamplingParams(temperature=0, max_tokens=8, stop_token_ids=[third])
        (made,) = llm.generate(FOX, params)[0].outputs
        assert (made.finish_reason, made.stop_reason, made.token_ids[-1]) == ("stop", third, third)
        assert llm.generate(FOX, GREEDY)[0].outputs[0].stop_reason is None

    def test_a_loop_ends(self, llm: LLM) -> None:
        detection = RepetitionDetection(max_pattern_size=3, min_count=4)
        params = SamplingParams(temperature=0, logit_bias={77: 100}, repetition_detection=detection, max_tokens=50)
        (made,) = llm.generate(FOX, params)[0].outputs
        assert (made.token_ids, made.finish_reason, made.stop_reason) == ((77,) * 4, "stop", "repetition")

    def test_a_deadline_keeps_what_there_is(self, path: str) -> None:
        llm = LLM(path, max_model_len=256)
        begun = llm.generate("x", SamplingParams(temperature=0, ignore_eos=True, deadline_s=1e-9))[0].outputs[0]
        assert (begun.token_ids, begun.finish_reason, begun.stop_reason) == ((), "abort", "deadline")

    def test_everything_forbidden_is_an_error_of_one_request(self, llm: LLM) -> None:
        bad = SamplingParams(temperature=0, allowed_token_ids=[5], banned_token_ids=[5], max_tokens=3)
        first, second = llm.generate(["a", "b"], [bad, GREEDY])
        assert isinstance(first.error, NothingAllowedError) and first.outputs[0].finish_reason == "error"
        assert second.error is None and len(tokens(second)) == 8

    def test_bad_words_and_breakers_come_from_the_tokenizer(self, llm: LLM) -> None:
        (mark,) = llm.tokenize("!", add_special_tokens=False)
        values: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True, "logit_bias": {mark: 100}}
        assert llm.generate(FOX, SamplingParams(**values))[0].outputs[0].text == "!" * 8
        assert "!" not in llm.generate(FOX, SamplingParams(bad_words=["!"], **values))[0].outputs[0].text
        dry: dict[str, Any] = {"dry_multiplier": 40.0, "dry_allowed_length": 1, **values}
        (free,) = llm.generate(FOX, SamplingParams(**dry))
        assert tokens(free)[:2] == (mark, mark) and tokens(free) != (mark,) * 8  # the third goes on with a repetition
        (broken,) = llm.generate(FOX, SamplingParams(dry_sequence_breakers=["!"], **dry))
        assert tokens(broken) == (mark,) * 8

    def test_users_processors_see_the_request(self, llm: LLM) -> None:
        seen = []

        def only_even(logits: Any, context: Any) -> None:
            seen.append(len(context.tokens))
            logits[:, 1::2] = -np.inf

        params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logits_processors=[only_even])
        (output,) = llm.generate(FOX, params)
        length = len(output.prompt_token_ids)
        assert all(token % 2 == 0 for token in tokens(output)) and seen == list(range(length, length + 4))


class TestChoices:
    def test_choices_are_what_each_is_alone(self, llm: LLM) -> None:
        params = SamplingParams(n=3, max_tokens=10, seed=9, ignore_eos=True)
        (output,) = llm.generate(FOX, params)
        assert [made.index for made in output.outputs] == [0, 1, 2]
        assert len({made.token_ids for made in output.outputs}) == 3
        (alone,) = llm.generate(FOX, SamplingParams(max_tokens=10, seed=9, ignore_eos=True))
        assert tokens(output) == tokens(alone)

    def test_the_best_are_returned(self, llm: LLM) -> None:
        values: dict[str, Any] = {"max_tokens": 6, "seed": 9, "ignore_eos": True}
        (every,) = llm.generate(FOX, SamplingParams(n=5, logprobs=0, **values))
        (best,) = llm.generate(FOX, SamplingParams(n=2, best_of=5, **values))
        ranked = sorted(every.outputs, key=lambda made: -(made.cumulative_logprob or 0) / len(made.token_ids))
        assert [made.token_ids for made in best.outputs] == [made.token_ids for made in ranked[:2]]
        assert best.outputs[0].logprobs is None  # they were not asked for

    def test_one_choice_may_stop_before_the_others(self, llm: LLM) -> None:
        values: dict[str, Any] = {"n": 3, "max_tokens": 10, "seed": 9, "ignore_eos": True}
        (free,) = llm.generate(FOX, SamplingParams(**values))
        stop = free.outputs[1].text[2:4]
        (output,) = llm.generate(FOX, SamplingParams(stop=stop, **values))
        for made, whole in zip(output.outputs, free.outputs, strict=True):
            end = whole.text.find(stop)
            assert made.text == (whole.text if end < 0 else whole.text[:end])

    def test_beam_search_finds_what_exhaustive_search_finds(self, llm: LLM) -> None:
        prompt = llm.tokenize("Hello")
        params = BeamSearchParams(beam_width=40, max_tokens=2, ignore_eos=True)
        (found,) = llm.beam_search([prompt], params)
        (first,) = llm.logits([prompt])
        one = log_softmax(first[-1])
        best = np.argsort(-one)[:40]
        rows = llm.logits([[*prompt, int(token)] for token in best])
        two = np.array([one[token] + log_softmax(row[-1]) for token, row in zip(best, rows, strict=True)])
        order = np.argsort(-two, axis=None)[:40]
        expected = [(int(best[place // VOCABULARY]), int(place % VOCABULARY)) for place in order]
        assert [sequence.token_ids for sequence in found.sequences] == expected
        assert [sequence.cumulative_logprob for sequence in found.sequences] == pytest.approx(two.flat[order].tolist())
        assert not llm.pipeline.has_work

    def test_beams_end_and_are_ranked_by_length(self, llm: LLM) -> None:
        prompt = llm.tokenize("Hello")
        (free,) = llm.beam_search([prompt], BeamSearchParams(beam_width=4, max_tokens=6, ignore_eos=True))
        ends = [sequence.token_ids[0] for sequence in free.sequences]
        for early, penalty in ((True, 1.0), (False, 1.0), (False, 0.0), (False, 2.0)):
            params = BeamSearchParams(
                beam_width=4, max_tokens=6, stop_token_ids=ends, early_stopping=early, length_penalty=penalty
            )
            (found,) = llm.beam_search([prompt], params)
            scores = [sequence.score for sequence in found.sequences]
            assert scores == sorted(scores, reverse=True)
            for made in found.sequences:
                assert made.score == pytest.approx(made.cumulative_logprob / len(made.token_ids) ** penalty)
                assert (made.token_ids[-1] in ends) is (made.finish_reason == "stop")
                assert not set(made.token_ids[:-1]) & set(ends)
            if penalty == 0:  # the likeliest first token of all ends a text, and nothing can be likelier
                assert len(found.sequences[0].token_ids) == 1

    def test_a_beam_of_one_is_greedy(self, llm: LLM) -> None:
        (found,) = llm.beam_search(FOX, BeamSearchParams(beam_width=1, max_tokens=8, ignore_eos=True))
        assert found.sequences[0].token_ids == tokens(llm.generate(FOX, GREEDY)[0])


class TestLoading:
    def test_a_checkpoint_without_a_tokenizer_runs_on_token_ids(self, tmp_path: Path) -> None:
        config = tiny_config("llama")
        llm = LLM(str(write_huggingface(tmp_path / "m", config, tiny_tensors(config))))
        assert not llm.has_tokenizer
        (output,) = llm.generate([[3, 4, 5]], SamplingParams(temperature=0, max_tokens=3, logprobs=1))
        assert len(tokens(output)) == 3 and output.outputs[0].text == ""
        assert output.outputs[0].logprobs is not None
        assert next(iter(output.outputs[0].logprobs[0].values())).decoded_token is None
        assert len(llm.score([3, 4], [[5], [6]])) == 2 and llm.embed([3, 4]).shape[0] == 1
        assert llm.beam_search([3, 4], BeamSearchParams(beam_width=2, max_tokens=2))[0].sequences[0].text == ""
        for call in (lambda: llm.generate("text"), lambda: llm.tokenize("x"), lambda: llm.tokenizer):
            with pytest.raises(UnsupportedModelError, match="tokenizer"):
                call()
        with pytest.raises(InvalidRequestError, match="stop: needs a tokenizer"):
            llm.generate([[3]], SamplingParams(stop="x"))

    def test_a_closed_one_says_so(self, path: str) -> None:
        with LLM(path) as llm:
            stream = llm.generate("x", GREEDY, stream=True)
            next(stream)
        llm.close()
        with pytest.raises(InvalidRequestError, match="this LLM is closed"):
            next(stream)
        for call in (lambda: llm.generate("x"), lambda: llm.tokenize("x"), lambda: llm.embed("x"), lambda: llm.model):
            with pytest.raises(InvalidRequestError, match="this LLM is closed"):
                call()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_num_seqs": 0}, "max_num_seqs: must be at least 1, got 0"),
            ({"max_num_seqs": True}, "max_num_seqs: must be an integer, got True"),
            ({"max_num_batched_tokens": 5}, "max_num_batched_tokens: 5 is below max_num_seqs"),
            ({"kv_cache_memory": 0.5}, "kv_cache_memory: must be an integer"),
            ({"dtype": "int4"}, "dtype: must be auto or float32, got 'int4'"),
            ({"generation_config": "vllm"}, "generation_config: must be auto or none"),
            ({"seed": -1}, "seed: must be at least 0, got -1"),
            ({"max_model_len": 300}, "max_length .300. exceeds"),
        ],
    )
    def test_options_are_checked(self, path: str, options: dict[str, Any], message: str) -> None:
        with pytest.raises((InvalidRequestError, ValueError), match=message):
            LLM(path, **options)

    def test_the_cache_can_be_given_its_memory(self, path: str) -> None:
        page = 2 * 2 * 2 * 16 * 2 * 16
        llm = LLM(path, block_size=16, kv_cache_memory=page * 6)
        assert llm.max_model_len == 5 * 16  # and a null page
        assert len(tokens(llm.generate(FOX, GREEDY)[0])) == 8

    def test_defaults_of_the_checkpoint_can_be_switched_off(self, tmp_path: Path) -> None:
        path = write_tiny_model(tmp_path / "m")
        (path / "generation_config.json").write_text('{"temperature": 0.3, "top_k": 7, "max_new_tokens": 4}')
        made = LLM(str(path)).default_sampling_params
        assert (made.temperature, made.top_k, made.max_tokens) == (0.3, 7, 4)
        off = LLM(str(path), generation_config="none")
        assert (off.default_sampling_params.temperature, off.default_sampling_params.top_k) == (1.0, -1)
        assert not off.sampling_defaults.stated()

    def test_a_bar_is_shown_when_asked_for(self, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
        for wanted, has_bar in ((True, True), (None, False), (False, False)):
            errors = io.StringIO()
            monkeypatch.setattr(sys, "stderr", errors)
            llm.generate(["a", "b"], GREEDY, progress=wanted)
            assert ("generating" in errors.getvalue()) is has_bar

    def test_names_are_exported_and_nothing_else(self) -> None:
        assert {"LLM", "AsyncLLM", "SamplingParams", "RequestOutput"} <= set(dir(puna))
        for name in puna.__all__:
            assert getattr(puna, name) is not None
        with pytest.raises(AttributeError, match="nonsense"):
            _ = puna.nonsense
