"""examples/lm_eval_harness against the harness's own model over transformers, on one checkpoint in float32."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from puna import LLM
from support.converted import write_model
from support.tiny_tokenizers import byte_level_tokenizer_json

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
pytest.importorskip("lm_eval")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "lm_eval_harness"))

import run
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from puna_lm import PunaLM

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]

LONG = "the quick brown fox jumps over the lazy dog and runs away " * 12


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PunaLM, Any]]:
    # As many rows as tokens: transformers would draw others too.
    count = Tokenizer.from_str(byte_level_tokenizer_json()).get_vocab_size()
    directory = write_model(tmp_path_factory.mktemp("model"), "llama", seed=3, vocab_size=count)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"), bos_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    options: dict[str, Any] = {"dtype": "float32", "kv_cache_dtype": "float32", "enable_weight_cache": False}
    with LLM(str(directory), max_model_len=64, **options) as llm:
        mine = PunaLM(llm, max_gen_toks=8)
        theirs = HFLM(pretrained=reference, tokenizer=tokenizer, max_length=mine.max_length, batch_size=1)
        yield mine, theirs


def instances(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]


def test_continuations(models: tuple[PunaLM, Any]) -> None:
    mine, theirs = models
    contexts = ["The capital of France is", "", "two words ", LONG]
    given = instances(
        "loglikelihood", *[(context, ending) for context in contexts for ending in (" Paris", " a b c", "!")]
    )
    got, expected = mine.loglikelihood(given), theirs.loglikelihood(given, disable_tqdm=True)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
    assert [value for value, _ in got] == pytest.approx([value for value, _ in expected], abs=1e-4)


def test_whole_texts(models: tuple[PunaLM, Any]) -> None:
    mine, theirs = models
    assert len(mine.tok_encode(LONG)) > 3 * mine.max_length
    given = instances("loglikelihood_rolling", ("a short text",), (LONG,), (LONG[:311],))
    got, expected = mine.loglikelihood_rolling(given), theirs.loglikelihood_rolling(given, disable_tqdm=True)
    assert got == pytest.approx(expected, abs=2e-3)  # of sums over hundreds of tokens


def test_answers(models: tuple[PunaLM, Any]) -> None:
    mine, theirs = models
    asked = {"until": ["e", "\n\n"], "do_sample": False, "max_gen_toks": 12}
    given = instances("generate_until", ("one two", asked), ("three", {**asked, "until": []}), (LONG, asked))
    assert mine.generate_until(given, disable_tqdm=True) == theirs.generate_until(given, disable_tqdm=True)


def test_an_unknown_value_is_refused(models: tuple[PunaLM, Any]) -> None:
    with pytest.raises(ValueError, match="num_beams"):
        models[0].generate_until(instances("generate_until", ("a", {"until": ["b"], "num_beams": 3})))


def test_tasks(models: tuple[PunaLM, Any]) -> None:
    got, expected = (run.evaluate(model) for model in models)
    assert got.keys() == expected.keys() == {"capitals", "counting", "sentences"}
    for task, metrics in got.items():
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
        assert numbers
        assert numbers == pytest.approx({name: expected[task][name] for name in numbers}, rel=1e-4), task
