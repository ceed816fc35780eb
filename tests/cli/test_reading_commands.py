"""`puna score`, `puna embed` and `puna perplexity`: the numbers of the Python interface, and files as asked for."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from puna import LLM
from puna.entrypoints.cli import run
from support.tiny_model import write_tiny_model

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
Puna = Callable[..., tuple[int, str, str]]
FOX = "The quick brown fox jumps over the lazy dog. "


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def llm(tiny: str) -> LLM:
    return LLM(tiny)


@pytest.fixture
def puna(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Puna:
    def call(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = run(arguments)
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return call


def checked(command: str, text: str) -> Any:
    value = json.loads(text)
    jsonschema.validate(value, json.loads((SCHEMAS / f"{command}.json").read_text()))
    return value


def test_score(puna: Puna, tiny: str, llm: LLM, tmp_path: Path) -> None:
    (tmp_path / "choices").write_text(" me too\n\n nobody\n")
    arguments = ["score", tiny, "-p", "Hello", "--choice", " you", "--choices-file", str(tmp_path / "choices")]
    status, out, err = puna(*arguments, "--json")
    value = checked("score", out)
    expected = llm.score("Hello", [" you", " me too", " nobody"])
    assert (status, err) == (0, "")
    assert [choice["logprob"] for choice in value["choices"]] == [score.logprob for score in expected]
    assert [choice["token_ids"] for choice in value["choices"]] == [list(score.token_ids) for score in expected]
    assert sum(choice["share"] for choice in value["choices"]) == pytest.approx(1)
    assert value["best"] == int(np.argmax([score.logprob for score in expected]))
    lines = puna(*arguments)[1].splitlines()
    values = sorted((round(score.logprob, 4) for score in expected), reverse=True)
    assert [float(line.split("\t")[0]) for line in lines] == values
    out = puna("score", tiny, "-p", "-", "--choice", " you", stdin=b"Hello")[1]
    assert out.startswith(f"{expected[0].logprob:.4f}\t")


def test_embed(puna: Puna, tiny: str, llm: LLM, tmp_path: Path) -> None:
    texts = ["a cat", "a dog", "a house"]
    expected = llm.embed(texts)
    status, out, err = puna("embed", tiny, *texts)
    assert (status, err) == (0, "")
    assert np.array_equal(np.array([json.loads(line) for line in out.splitlines()], np.float32), expected)
    value = checked("embed", puna("embed", tiny, "a cat", "-f", "-", "--json", stdin=b"a dog\n\na house\n")[1])
    assert np.array_equal(np.array(value["embeddings"], np.float32), expected)
    options = ["--pooling", "last", "--no-normalize", "--layer", "1"]
    assert puna("embed", tiny, *texts, *options, "-o", str(tmp_path / "x.npy")) == (0, "", "")
    array = np.load(tmp_path / "x.npy")
    assert array.dtype == np.float32
    assert np.array_equal(array, llm.embed(texts, pooling="last", normalize=False, layer=1))
    assert puna("embed", tiny, *texts, *options, "-o", str(tmp_path / "x.json")) == (0, "", "")
    value = checked("embed", (tmp_path / "x.json").read_text())
    assert (value["pooling"], value["layer"], value["normalized"], value["dimensions"]) == ("last", 1, False, 64)


def test_embed_more_than_are_read_together(puna: Puna, tiny: str, llm: LLM) -> None:
    lines = puna("embed", tiny, "-f", "-", stdin="\n".join(f"text {i}" for i in range(300)).encode())[1].splitlines()
    assert len(lines) == 300
    assert np.array_equal(np.array(json.loads(lines[290]), np.float32), llm.embed("text 290")[0])


def test_perplexity(puna: Puna, tiny: str, llm: LLM, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text(FOX * 30)
    status, out, err = puna("perplexity", tiny, str(path), "--window", "64", "--stride", "16", "--json")
    value = checked("perplexity", out)
    assert (status, err) == (0, "")
    assert value["perplexity"] == pytest.approx(llm.perplexity(FOX * 30, window=64, stride=16), rel=1e-12)
    assert value["num_scored_tokens"] == len(llm.tokenize(FOX * 30)) - 1
    assert (value["window"], value["stride"]) == (64, 16)
    values = llm.token_logprobs(FOX * 30, window=64, stride=16)
    assert value["standard_error"] == pytest.approx(
        value["perplexity"] * values.std(ddof=1) / math.sqrt(len(values)), rel=1e-9
    )
    status, out, err = puna("perplexity", tiny, "-", stdin=path.read_bytes())
    assert (status, out) == (0, f"{llm.perplexity(FOX * 30):.4f}\n") and " tokens in " in err


def test_log_probabilities_of_a_text_do_not_depend_on_windows_read_together(llm: LLM) -> None:
    ids = llm.tokenize(FOX * 30)
    values = llm.token_logprobs(ids, window=24, stride=8)
    assert values.shape == (len(ids) - 1,) and values.dtype == np.float64
    first = llm.token_logprobs(ids[:24])
    assert np.array_equal(values[:23], first)
    last = llm.token_logprobs(ids[-24:])
    left = (len(ids) - 24) % 8 or 8
    assert np.array_equal(values[-left:], last[-left:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "{}", "-p", "x"], "choices: at least one"),
        (["score", "{}", "-p", "x", "--choice", ""], "choices"),
        (["score", "{}", "-p", "x", "--choices-file", "/nothing"], "cannot be read"),
        (["score", "{}", "-p", "x", "--choice", " y" * 400], "more than the context"),
        (["embed", "{}"], "TEXT: at least one"),
        (["embed", "{}", "x", "-o", "/tmp/x.csv"], "must end with .npy or .json"),
        (["embed", "{}", "x", "--layer", "9"], "layer"),
        (["embed", "{}", "x", "-f", "/nothing"], "cannot be read"),
        (["perplexity", "{}", "/nothing"], "cannot be read"),
        (["perplexity", "{}", "-", "--window", "1"], "window"),
        (["perplexity", "{}", "-", "--window", "9", "--stride", "9"], "stride"),
        (["perplexity", "{}", "-"], "at least 2 tokens"),
    ],
)
def test_wrong_use_is_one_sentence(puna: Puna, tiny: str, arguments: list[str], message: str) -> None:
    status, out, err = puna(*(tiny if argument == "{}" else argument for argument in arguments), stdin=b"x")
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1
