"""The loop over real tiny models: lengths that change rotary frequencies, log-probabilities, turns of several passes,
broken weights.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.entrypoints.llm import LLM
from puna.errors import InvalidRequestError
from puna.pipelines.batch import FinishReason
from puna.pipelines.context import EOSTracker
from puna.pipelines.lib.log_probabilities import token_log_probabilities
from puna.pipelines.prompt_reading import LogprobReader
from puna.pipelines.request import GenerateRequest
from puna.pipelines.sampling import NonFiniteLogitsError
from puna.pipelines.sampling_params import SamplingParams
from puna.pipelines.scheduler import SchedulerLimits
from support.answers import answers, growth
from support.checkpoints import (
    BLOCK_256,
    FAMILIES,
    ORIGINAL_LENGTH,
    Tensors,
    tiny_config,
    tiny_tensors,
    write_huggingface,
)
from support.family_model import random_prompt
from support.gguf_checkpoints import random_blocks, write_gguf
from support.real_loop import RealLoop, request
from support.tiny_tokenizers import byte_level_tokenizer_json
from support.variants import VARIANTS

VOCABULARY = 131


def write_model(directory: Path, family: str, rope: str = "none", tensors: Tensors | None = None) -> str:
    config = tiny_config(family, rope)
    write_huggingface(directory, config, tiny_tensors(config) if tensors is None else tensors)
    (directory / "tokenizer.json").write_text(byte_level_tokenizer_json(900))
    return str(directory)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(family, rope, options) -> a loaded model with pages of 4 tokens and a float32 cache."""

    @cache
    def load(family: str, rope: str = "none", **options: Any) -> LLM:
        path = write_model(tmp_path_factory.mktemp(f"{family}-{rope}"), family, rope)
        return LLM(path, kv_cache_dtype="float32", block_size=4, max_num_seqs=4, **options)

    return load


def prompt_of(length: int) -> list[int]:
    return random_prompt(VOCABULARY, length, seed=length)


@pytest.fixture(scope="module")
def llm(models: Any) -> LLM:
    loaded = models("llama")
    assert isinstance(loaded, LLM)
    return loaded


class TestLongRope:
    """Past the original length a request has other frequencies, for all its tokens."""

    @pytest.mark.parametrize("family", ["llama", "phi3"])
    @pytest.mark.parametrize("step", [5, 512])
    def test_a_request_that_crosses_has_the_bits_of_one_that_begins_there(
        self, models: Any, family: str, step: int
    ) -> None:
        llm = models(family, "longrope")
        limits = SchedulerLimits(max_batch_size=2, max_step_tokens=step)
        prompt = prompt_of(ORIGINAL_LENGTH - 3)
        (crossing,) = RealLoop(llm, limits=limits).run([request(prompt, 8)])
        text = [*prompt, *crossing.tokens]
        for count in range(8):
            (fresh,) = RealLoop(llm).run([request(text[: len(prompt) + count], 1)])
            assert fresh.logits == crossing.logits[count : count + 1], f"{len(prompt) + count} tokens"

    def test_batch_mates_on_both_sides_do_not_matter(self, models: Any) -> None:
        llm = models("llama", "longrope")
        lengths = (ORIGINAL_LENGTH - 2, ORIGINAL_LENGTH + 9, 3)
        alone = [RealLoop(llm).run([request(prompt_of(length), 6)])[0] for length in lengths]
        together = RealLoop(llm, limits=SchedulerLimits(max_batch_size=3, max_step_tokens=11)).run(
            [request(prompt_of(length), 6) for length in lengths]
        )
        assert [item.logits for item in together] == [item.logits for item in alone]

    def test_the_lists_differ(self, models: Any) -> None:
        """Or the tests above would show nothing."""
        rope: Any = models("llama", "longrope").model.rope
        assert not np.array_equal(rope.inv_freq(ORIGINAL_LENGTH), rope.inv_freq(ORIGINAL_LENGTH + 1))


class TestDynamicRope:
    """The base is that of the prompt's length at admission."""

    def test_preemption_keeps_it(self, models: Any) -> None:
        llm = models("llama", "dynamic", max_model_len=2 * ORIGINAL_LENGTH)
        lengths = (ORIGINAL_LENGTH + 3, ORIGINAL_LENGTH + 1, 10)
        alone = [RealLoop(llm).run([request(prompt_of(length), 12)])[0] for length in lengths]
        tight = RealLoop(llm, 20, SchedulerLimits(max_batch_size=3, admission_watermark=1.0))
        together = tight.run([request(prompt_of(length), 12) for length in lengths])
        assert tight.scheduler.num_preemptions > 0
        assert [item.logits for item in together] == [item.logits for item in alone]

    def test_it_is_not_that_of_the_whole_text(self, models: Any) -> None:
        llm = models("llama", "dynamic", max_model_len=2 * ORIGINAL_LENGTH)
        prompt = prompt_of(ORIGINAL_LENGTH + 1)
        (grown,) = RealLoop(llm).run([request(prompt, 4)])
        (fresh,) = RealLoop(llm).run([request([*prompt, *grown.tokens[:3]], 1)])
        assert fresh.logits[0] != grown.logits[3]


class TestLogProbabilities:
    """Of prompts and of texts, each the one that a request of its own gives, bit for bit."""

    def expected(self, llm: LLM, text: list[int], top_n: int) -> list[Any]:
        """One record per position from the second on, each from a request of its own."""
        records = []
        for end in range(1, len(text)):
            (fresh,) = RealLoop(llm).run([request(text[:end], 1)])
            row = np.frombuffer(fresh.logits[0], dtype=np.float32)[None]
            records.append(token_log_probabilities(row, np.array(text[end : end + 1]), top_n))
        return records

    @pytest.mark.parametrize(("step", "logit_step"), [(3, 2), (512, 4), (512, 512)])
    def test_prompt_and_text(self, llm: LLM, step: int, logit_step: int) -> None:
        prompt, mate = prompt_of(9), prompt_of(14)
        limits = SchedulerLimits(max_batch_size=2, max_step_tokens=step, max_logit_tokens=logit_step)
        reader = LogprobReader(np.array(prompt), 3)
        contexts = [
            request(mate, 6),
            request(prompt, 4, record=False, reader=reader, params={"logprobs": 3, "prompt_logprobs": 3}),
        ]
        silent, echoed = RealLoop(llm, limits=limits).run(contexts)
        assert silent.log_probabilities == []
        (alone,) = RealLoop(llm).run([request(mate, 6)])
        assert silent.logits == alone.logits  # steps that return more logits have the same ones
        assert [*reader.records, *echoed.log_probabilities] == self.expected(llm, [*prompt, *echoed.tokens], 3)

    def test_preemption_does_not_report_the_prompt_twice(self, llm: LLM) -> None:
        def run(num_blocks: int) -> tuple[Any, int]:
            prompts = [prompt_of(length) for length in (15, 11)]
            readers = [LogprobReader(np.array(prompt), 2) for prompt in prompts]
            params = {"logprobs": 2, "prompt_logprobs": 2}
            contexts = [request(p, 12, reader=r, params=params) for p, r in zip(prompts, readers, strict=True)]
            loop = RealLoop(llm, num_blocks, SchedulerLimits(max_batch_size=2, admission_watermark=1.0))
            outcomes = loop.run(contexts)
            found = [[*r.records, *o.log_probabilities] for r, o in zip(readers, outcomes, strict=True)]
            return found, loop.scheduler.num_preemptions

        plenty, tight = run(64), run(9)
        assert plenty[0] == tight[0] and tight[1] > 0
        assert [len(records) for records in tight[0]] == [14 + 12, 10 + 12]

    @pytest.mark.parametrize("first", [1, 4, 9, 12])
    def test_a_cached_beginning_is_not_read_again(self, llm: LLM, first: int) -> None:
        prompt = prompt_of(13)
        loop = RealLoop(llm)
        loop.run([request(prompt, 1)])
        whole, part = LogprobReader(np.array(prompt)), LogprobReader(np.array(prompt), first_token=first)
        loop.run([request(prompt, 1, reader=whole, is_read_only=True)])
        asked = request(prompt, 1, reader=part, is_read_only=True)
        (outcome,) = loop.run([asked])
        assert part.records == whole.records[first - 1 :]
        assert asked.cached_prefix_length == (first - 1) // 4 * 4
        assert (outcome.tokens, outcome.finish_reason) == ([], FinishReason.LENGTH)

    def test_what_cannot_be_reported_is_refused(self) -> None:
        with pytest.raises(InvalidRequestError, match="from 0 to 20, got 21"):
            SamplingParams(logprobs=21)


class TestTurnsOfSeveralPasses:
    """`prepare_next_token_inputs` in the loop: the same bits as single steps, and nothing kept behind an end."""

    @pytest.mark.parametrize(
        ("family", "rope"), [("llama", "none"), ("mistral", "none"), ("llama", "longrope"), ("olmo", "none")]
    )
    def test_several_passes_are_single_steps(self, models: Any, family: str, rope: str) -> None:
        def contexts() -> list[Any]:
            params = {"temperature": 0.8, "logprobs": 20}
            return [request(prompt_of(n), 9, record=False, params=params) for n in (19, 3, 8)]

        llm = models(family, rope)
        single, several = (
            RealLoop(llm, limits=SchedulerLimits(max_batch_size=3, max_num_steps=steps)).run(contexts())
            for steps in (1, 4)
        )
        assert [item.tokens for item in several] == [item.tokens for item in single]
        # the twenty likeliest tokens in float64: as good as the bits of the row
        assert [item.log_probabilities for item in several] == [item.log_probabilities for item in single]

    def test_tokens_behind_the_last_one_are_dropped_and_their_pages_not_published(self, models: Any) -> None:
        llm, prompt = models("llama"), prompt_of(6)
        (whole,) = RealLoop(llm).run([request(prompt, 12, record=False, params={"temperature": 1.0})])
        end = next(i for i, token in enumerate(whole.tokens) if i >= 2 and token not in whole.tokens[:i])
        tracker = EOSTracker(frozenset({whole.tokens[end]}))
        loop = RealLoop(llm, limits=SchedulerLimits(max_num_steps=8))
        asked = request(prompt, 40, record=False, params={"temperature": 1.0}, eos_tracker=tracker)
        (cut,) = loop.run([asked])
        assert cut.tokens == whole.tokens[: end + 1] and cut.finish_reason is FinishReason.STOP
        # the last token's keys were computed by a pass that does not count
        assert loop.kv.counts().cached == (len(prompt) + end) // 4
        # and what was published is right: a request that hits it goes on with the same bits
        (first,) = RealLoop(llm).run([request([*prompt, *cut.tokens], 3)])
        (second,) = loop.run([request([*prompt, *cut.tokens], 3)])
        assert second.logits == first.logits


class TestBrokenWeights:
    """Weights that are no numbers end in an error, never in a text; requests that do not meet them go on."""

    @pytest.mark.parametrize(
        "value", [np.nan, pytest.param(np.inf, marks=pytest.mark.slow), pytest.param(-np.inf, marks=pytest.mark.slow)]
    )
    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_tensor(self, tmp_path: Path, family: str, value: float) -> None:
        tensors = tiny_tensors(tiny_config(family))
        names = [name for name in tensors if ".layers." not in name or ".layers.1." in name]
        if family == "olmo" and np.isinf(value):  # it clamps projections, and the clamp of an infinity is a number
            names = [name for name in names if not name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))]
        if family in ("gemma2", "gemma3_text") and np.isinf(value):  # soft caps make numbers of infinities too
            names = [name for name in names if name == "model.embed_tokens.weight"]
        for number, name in enumerate(names):
            broken = {**tensors, name: tensors[name].copy()}
            broken[name].reshape(broken[name].shape[0], -1)[3, 0] = value
            llm = LLM(write_model(tmp_path / str(number), family, tensors=broken))
            (generation,) = answers(llm, [GenerateRequest(token_ids=[2, 3, 4], sampling_params=SamplingParams())])
            assert isinstance(generation.error, NonFiniteLogitsError), name
            assert (generation.finish_reason, generation.token_ids) == (FinishReason.ERROR, ())

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_only_requests_that_meet_them_fail(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
    ) -> None:
        monkeypatch.setenv("PUNA_VARIANT", variant)
        tensors = tiny_tensors(tiny_config("llama"))
        healthy = LLM(write_model(tmp_path / "healthy", "llama", tensors=tensors), max_num_seqs=3)
        tensors["model.embed_tokens.weight"][7, 5] = np.nan
        llm = LLM(write_model(tmp_path / "broken", "llama", tensors=tensors), max_num_seqs=3)
        params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
        prompts = ([11, 12, 13], [11, 7, 13], [20] * 30)
        asked = [GenerateRequest(token_ids=prompt, sampling_params=params) for prompt in prompts]
        first, bad, last = answers(llm, asked)
        assert isinstance(bad.error, NonFiniteLogitsError) and bad.token_ids == ()
        assert [first, last] == [answers(healthy, [item])[0] for item in (asked[0], asked[2])]
        # the pages of the failed request are used again
        assert answers(llm, asked)[0] == first
        with pytest.raises(NonFiniteLogitsError):
            list(growth(llm, asked[1]))

    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize("encoding", ["Q4_0", "Q8_0", "Q4_K", "Q6_K"])
    def test_scales_of_quantized_weights(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, variant: str
    ) -> None:
        monkeypatch.setenv("PUNA_VARIANT", variant)
        config = tiny_config("llama", **BLOCK_256)
        tensors, blocks = random_blocks(tiny_tensors(config), encoding)
        place = 208 if encoding == "Q6_K" else 0  # of the block's float16 scale
        for name in ("model.layers.0.self_attn.k_proj.weight", "model.layers.2.mlp.down_proj.weight", "lm_head.weight"):
            stored = blocks[name][0].copy()
            stored[5, place : place + 2] = np.array([np.nan], np.float16).view(np.uint8)
            path = write_gguf(tmp_path / f"{name}.gguf", config, tensors, blocks={**blocks, name: (stored, encoding)})
            (generation,) = answers(LLM(str(path)), [GenerateRequest(token_ids=[2, 3, 4])])
            assert isinstance(generation.error, NonFiniteLogitsError), name
