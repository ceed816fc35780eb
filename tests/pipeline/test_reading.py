"""What `LLM` reads off a prompt: scores, log-probabilities, logits, hidden states, vectors, perplexity."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna import LLM, SamplingParams
from puna.entrypoints.outputs import RequestOutput
from puna.errors import InvalidRequestError
from puna.pipelines.lib.log_probabilities import log_softmax
from puna.pipelines.sampling import NonFiniteLogitsError
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


class TestReading:
    def test_logits_are_those_that_tokens_are_drawn_from(self, llm: LLM) -> None:
        ids = llm.tokenize(FOX * 3)
        rows, short = llm.logits([ids, ids[:3]])
        assert rows.shape == (len(ids), 832) and rows.dtype == np.float32
        assert np.array_equal(short, rows[:3])
        captured = []
        params = SamplingParams(
            temperature=0, max_tokens=1, logits_processors=[lambda row, _context: captured.append(row.copy())]
        )
        llm.generate([ids], params)
        assert np.array_equal(captured[0][0], rows[-1])

    def test_prompt_log_probabilities_are_those_of_the_logits(self, llm: LLM) -> None:
        ids = llm.tokenize(FOX * 2)
        (rows,) = llm.logits([ids])
        params = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=2, logprob_token_ids=[7], ignore_eos=True)
        (output,) = llm.generate([ids], params)
        assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
        assert len(output.prompt_logprobs) == len(ids) and output.outputs[0].logprobs is None
        for position, entry in enumerate(output.prompt_logprobs[1:]):
            assert entry is not None
            expected = log_softmax(rows[position])
            assert {ids[position + 1], 7} <= entry.keys()
            assert {token: found.logprob for token, found in entry.items()} == pytest.approx(
                {token: expected[token] for token in entry}, abs=1e-9
            )
            assert all(found.rank == 1 + int((expected > expected[token]).sum()) for token, found in entry.items())

    @pytest.mark.parametrize("width", [1, 3])
    def test_scores_are_those_of_the_logits(self, llm: LLM, width: int) -> None:
        prompt, choices = llm.tokenize(FOX * 2), [[5, 6, 7][:width], [8], [9, 10]]
        scores = llm.score(prompt, choices)
        for choice, score in zip(choices, scores, strict=True):
            (rows,) = llm.logits([[*prompt, *choice]])
            expected = [log_softmax(rows[len(prompt) - 1 + i])[token] for i, token in enumerate(choice)]
            assert score.token_logprobs == pytest.approx(expected, abs=1e-9)
            assert (score.token_ids, score.text) == (tuple(choice), None)
            assert score.logprob == pytest.approx(sum(expected)) and score.mean_logprob == score.logprob / len(choice)
        assert not llm.pipeline.has_work

    @pytest.mark.parametrize("max_num_seqs", [1, 16])
    def test_a_shared_prompt_is_read_once(self, path: str, max_num_seqs: int) -> None:
        llm = LLM(path, block_size=64, max_num_seqs=max_num_seqs)
        read: list[int] = []
        execute, reading = llm.model.execute, llm.model.execute_for_readers
        llm.model.execute = lambda inputs: (read.append(inputs.tokens.shape[0]), execute(inputs))[1]
        llm.model.execute_for_readers = lambda inputs, *rest: (
            read.append(inputs.tokens.shape[0]),
            reading(inputs, *rest),
        )[1]
        prompt = list(range(3, 103))
        scores = llm.score(prompt, [[token] for token in range(200, 210)])
        assert sum(read) <= 100 + 10 * 2 + 10  # the prompt, two tokens a choice, and what the root makes meanwhile
        assert [s.logprob for s in scores] == [LLM(path).score(prompt, [[t]])[0].logprob for t in range(200, 210)]

    def test_a_greedy_choice_is_told(self, llm: LLM) -> None:
        best = tokens(llm.generate(FOX, GREEDY)[0])
        assert [s.is_greedy for s in llm.score(FOX, [best[:3], [*best[:2], best[2] + 1], [best[0]]])] == [
            True,
            False,
            True,
        ]
        (text,) = llm.score(FOX, [" dog"])
        assert text.text == " dog" and text.token_ids == tuple(llm.tokenize(" dog", add_special_tokens=False))
        for bad in ([], [""], [[]]):
            with pytest.raises(InvalidRequestError):
                llm.score(FOX, bad)

    def test_perplexity(self, llm: LLM) -> None:
        ids = llm.tokenize(FOX * 3)
        (rows,) = llm.logits([ids])
        nll = [-log_softmax(rows[i])[token] for i, token in enumerate(ids[1:])]
        assert llm.perplexity(FOX * 3) == pytest.approx(math.exp(np.mean(nll)), rel=1e-9)

    def test_perplexity_in_windows(self, llm: LLM) -> None:
        ids = llm.tokenize(FOX * 3)
        width, stride = 20, 7
        nll, scored = [], 1
        while scored < len(ids):
            end = width if scored == 1 else min(scored + stride, len(ids))
            begin = max(0, end - width)
            (rows,) = llm.logits([ids[begin:end]])
            nll += [-log_softmax(rows[i - begin - 1])[ids[i]] for i in range(scored, min(end, len(ids)))]
            scored = end
        assert len(nll) == len(ids) - 1
        found = llm.perplexity(ids, window=width, stride=stride)
        assert found == pytest.approx(math.exp(np.mean(nll)), rel=1e-9)
        for bad in ({"window": 1}, {"window": 257}, {"window": 10, "stride": 10}):
            with pytest.raises(InvalidRequestError):
                llm.perplexity(ids, **bad)
        with pytest.raises(InvalidRequestError, match="at least 2 tokens"):
            llm.perplexity([5])

    def test_hidden_states(self, llm: LLM, path: str) -> None:
        (states,) = llm.encode(FOX * 2, layers=[1, 2, -1, -2])
        length = len(llm.tokenize(FOX * 2))
        assert {layer: array.shape for layer, array in states.items()} == dict.fromkeys((1, 2, -1, -2), (length, 64))
        assert np.array_equal(states[2], states[-1]) and np.array_equal(states[1], states[-2])
        assert not np.array_equal(states[1], states[2])
        chunked = LLM(path, max_num_batched_tokens=5, max_num_seqs=2)
        (same,) = chunked.encode(FOX * 2, layers=[1, 2])
        assert np.array_equal(same[1], states[1]) and np.array_equal(same[2], states[2])
        # the last layer's are taken behind the final norm: the output matrix makes logits of them
        weights = llm.model.state_dict["lm_head.weight"].astype(np.float64)
        (rows,) = llm.logits([llm.tokenize(FOX * 2)])
        np.testing.assert_allclose(states[-1].astype(np.float64) @ weights.T, rows, atol=1e-4)
        # layer 0 is what the first one reads
        (begin,) = llm.encode(FOX, layers=[0, 1, -3])
        table = llm.model.state_dict["embed_tokens.weight"][llm.tokenize(FOX)].astype(np.float32)
        assert np.array_equal(begin[0], begin[-3]) and np.array_equal(begin[0], table)
        for bad in (3, -4):
            with pytest.raises(InvalidRequestError, match="from 0 to 2"):
                llm.encode(FOX, layers=[bad])

    @pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
    def test_embeddings(self, llm: LLM, path: str, pooling: Any) -> None:
        prompts = ["Hello", FOX * 3]
        plain = llm.embed(prompts, pooling=pooling, normalize=False)
        for prompt, vector in zip(prompts, plain, strict=True):
            states = llm.encode(prompt)[0][-1].astype(np.float64)
            expected = {"mean": states.mean(axis=0), "last": states[-1], "cls": states[0]}[pooling]
            np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=1e-6)
        unit = llm.embed(prompts, pooling=pooling)
        assert unit.dtype == np.float32 and np.linalg.norm(unit, axis=1) == pytest.approx([1, 1], abs=1e-6)
        chunked = LLM(path, max_num_batched_tokens=4, max_num_seqs=2)
        assert np.array_equal(chunked.embed(prompts, pooling=pooling), unit)

    def test_nothing_gives_nothing(self, llm: LLM) -> None:
        assert llm.embed([]).shape == (0, 64)
        assert llm.generate([]) == llm.logits([]) == llm.encode([]) == []

    def test_a_wrong_pooling_is_refused(self, llm: LLM) -> None:
        with pytest.raises(InvalidRequestError, match="pooling: must be one of mean, last, cls"):
            llm.embed("x", pooling="max")  # type: ignore[arg-type]

    def test_reading_mixes_with_generating(self, llm: LLM) -> None:
        expected = tokens(llm.generate(FOX, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))[0])
        vector = llm.embed(FOX * 2)
        stream = llm.generate(FOX, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True), stream=True)
        output = next(stream)
        with ThreadPoolExecutor(3) as threads:
            others = [threads.submit(llm.embed, FOX * 2), threads.submit(llm.logits, [[3, 4, 5]])]
            output = list(stream)[-1]
            assert np.array_equal(others[0].result(60), vector) and others[1].result(60)[0].shape == (3, 832)
        assert tokens(output) == expected

    def test_broken_weights_are_an_error(self, tmp_path: Path) -> None:
        config = tiny_config("llama")
        tensors = tiny_tensors(config)
        tensors["model.norm.weight"][3] = np.nan
        llm = LLM(str(write_huggingface(tmp_path / "m", config, tensors)))
        with pytest.raises(NonFiniteLogitsError):
            llm.logits([[3, 4, 5]])
        with pytest.raises(NonFiniteLogitsError):
            llm.embed([[3, 4, 5]])
