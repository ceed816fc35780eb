"""Filters, penalties, log-probabilities and beams against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.generation import logits_process as hf

from puna import LLM, BeamSearchParams, SamplingParams
from puna.pipelines.sampling import SamplingRow
from puna.pipelines.sampling.draw import draw
from puna.pipelines.sampling.edits import apply_edits
from support.checkpoints import tiny_config, tiny_tensors, write_huggingface
from support.family_model import random_prompt

pytestmark = pytest.mark.oracle

VOCABULARY = 2000
TOKENS = np.random.default_rng(3).integers(0, 40, 60)


def row(params: SamplingParams, **options: Any) -> SamplingRow:
    return SamplingRow(params, TOKENS, 10, np.zeros(0, np.int64), seed=params.seed or 0, **options)


def logits_of(seed: int) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((1, VOCABULARY)) * 3).astype(np.float32)


def kept(scores: torch.Tensor) -> list[int]:
    return torch.isfinite(scores[0]).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("values", "theirs"),
    [
        ({"top_k": 50}, hf.TopKLogitsWarper(50)),
        ({"top_p": 0.9}, hf.TopPLogitsWarper(0.9)),
        ({"top_p": 0.2}, hf.TopPLogitsWarper(0.2)),
        ({"min_p": 0.05}, hf.MinPLogitsWarper(0.05)),
        ({"typical_p": 0.6}, hf.TypicalLogitsWarper(0.6)),
        ({"typical_p": 0.95}, hf.TypicalLogitsWarper(0.95)),
    ],
)
def test_filters(values: dict[str, Any], theirs: Any, seed: int) -> None:
    logits = logits_of(seed)
    line = [row(SamplingParams(temperature=0.7, seed=1, **values))]
    _tokens, (distribution,) = draw(logits, logits.max(axis=1), line, [True])
    assert distribution is not None
    warm = hf.TemperatureLogitsWarper(0.7)(None, torch.from_numpy(logits).double())
    expected = kept(theirs(None, warm))
    difference = set(distribution.ids.tolist()) ^ set(expected)
    assert len(difference) <= 1  # a probability that meets the bound to the last bit
    common = np.isin(distribution.ids, expected)
    mine = distribution.weights[common] / distribution.weights.sum()
    probabilities = torch.softmax(theirs(None, warm), -1)[0].numpy()[distribution.ids[common]]
    np.testing.assert_allclose(mine, probabilities, rtol=2e-2 if difference else 1e-6)


def test_filters_in_a_row() -> None:
    params = SamplingParams(temperature=0.8, top_k=60, min_p=0.01, top_p=0.95, seed=1)
    logits = logits_of(9)
    _tokens, (distribution,) = draw(logits, logits.max(axis=1), [row(params)], [True])
    scores = torch.from_numpy(logits).double()
    for theirs in (
        hf.TemperatureLogitsWarper(0.8),
        hf.TopKLogitsWarper(60),
        hf.MinPLogitsWarper(0.01),
        hf.TopPLogitsWarper(0.95),
    ):
        scores = theirs(None, scores)
    assert distribution is not None and distribution.ids.tolist() == kept(scores)


@pytest.mark.parametrize(
    ("params", "theirs"),
    [
        (SamplingParams(repetition_penalty=1.3), hf.RepetitionPenaltyLogitsProcessor(1.3)),
        (SamplingParams(repetition_penalty=0.7), hf.RepetitionPenaltyLogitsProcessor(0.7)),
        (SamplingParams(no_repeat_ngram_size=1), hf.NoRepeatNGramLogitsProcessor(1)),
        (SamplingParams(no_repeat_ngram_size=2), hf.NoRepeatNGramLogitsProcessor(2)),
        (SamplingParams(no_repeat_ngram_size=3), hf.NoRepeatNGramLogitsProcessor(3)),
        (SamplingParams(logit_bias={5: 2.5, 7: -3.0}), hf.SequenceBiasLogitsProcessor({(5,): 2.5, (7,): -3.0})),
        (SamplingParams(banned_token_ids=[3, 9]), hf.SuppressTokensLogitsProcessor([3, 9], device="cpu")),
    ],
)
def test_edits(params: SamplingParams, theirs: Any) -> None:
    logits = logits_of(1)
    expected = theirs(torch.from_numpy(TOKENS)[None], torch.from_numpy(logits.copy()))[0].numpy()
    apply_edits(logits[0], row(params))
    np.testing.assert_array_equal(np.isfinite(logits[0]), np.isfinite(expected))
    finite = np.isfinite(expected)
    np.testing.assert_allclose(logits[0][finite], expected[finite], rtol=1e-6)


def test_bad_words() -> None:
    words = [[int(TOKENS[-1]), 7], [11], [int(TOKENS[-2]), int(TOKENS[-1]), 12], [1, 13]]
    theirs = hf.NoBadWordsLogitsProcessor(words, eos_token_id=torch.tensor([VOCABULARY - 1]))
    logits = logits_of(2)
    expected = theirs(torch.from_numpy(TOKENS)[None], torch.from_numpy(logits.copy()))[0].numpy()
    apply_edits(logits[0], row(SamplingParams(), bad_words=tuple(tuple(word) for word in words)))
    np.testing.assert_array_equal(np.isfinite(logits[0]), np.isfinite(expected))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[LLM, Any]:
    config = tiny_config("llama")
    directory: Path = write_huggingface(tmp_path_factory.mktemp("model") / "m", config, tiny_tensors(config))
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    return LLM(str(directory), dtype="float32", kv_cache_dtype="float32", max_num_batched_tokens=64), theirs


def test_log_probabilities_of_prompt_and_text(models: tuple[LLM, Any]) -> None:
    llm, theirs = models
    prompt = random_prompt(theirs.config.vocab_size, 50, seed=1)
    params = SamplingParams(max_tokens=20, seed=4, logprobs=5, prompt_logprobs=5, ignore_eos=True)
    (output,) = llm.generate([prompt], params)
    made = output.outputs[0]
    text = [*prompt, *made.token_ids]
    with torch.no_grad():
        expected = torch.log_softmax(theirs(torch.tensor([text])).logits[0], -1).numpy()
    entries = [*(output.prompt_logprobs or [])[1:], *(made.logprobs or [])]
    assert len(entries) == len(text) - 1
    for position, entry in enumerate(entries):
        assert entry is not None and text[position + 1] in entry and len(entry) in (5, 6)
        for token, found in entry.items():
            assert found.logprob == pytest.approx(expected[position, token], abs=1e-4)


def test_scores_and_hidden_states(models: tuple[LLM, Any]) -> None:
    llm, theirs = models
    prompt = random_prompt(theirs.config.vocab_size, 40, seed=2)
    with torch.no_grad():
        result = theirs(torch.tensor([prompt]), output_hidden_states=True)
    count = theirs.config.num_hidden_layers
    (states,) = llm.encode([prompt], layers=list(range(1, count + 1)))
    for layer in range(1, count + 1):
        np.testing.assert_allclose(states[layer], result.hidden_states[layer][0].numpy(), rtol=1e-3, atol=1e-4)
    logprobs = torch.log_softmax(result.logits[0], -1).numpy()
    (score,) = llm.score(prompt[:30], [prompt[30:]])
    expected = [logprobs[place - 1, prompt[place]] for place in range(30, 40)]
    assert score.token_logprobs == pytest.approx(expected, abs=1e-4)
    nll = -np.mean([logprobs[place - 1, prompt[place]] for place in range(1, 40)])
    assert llm.perplexity(prompt) == pytest.approx(np.exp(nll), rel=1e-3)


@pytest.mark.parametrize("penalty", [1.0, 0.5])
def test_beams(models: tuple[LLM, Any], penalty: float) -> None:
    llm, theirs = models
    prompt = random_prompt(theirs.config.vocab_size, 12, seed=3)
    params = BeamSearchParams(beam_width=4, max_tokens=6, length_penalty=penalty, ignore_eos=True)
    (found,) = llm.beam_search([prompt], params)
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor([prompt]),
            num_beams=4,
            num_return_sequences=4,
            max_new_tokens=6,
            do_sample=False,
            length_penalty=penalty,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
    sequences = [tuple(sequence[12:].tolist()) for sequence in expected.sequences]
    assert [sequence.token_ids for sequence in found.sequences] == sequences
    assert [s.score for s in found.sequences] == pytest.approx(expected.sequences_scores.tolist(), abs=1e-4)
