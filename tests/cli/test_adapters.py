"""`--adapter` of the commands: the numbers and texts of the Python interface with the adapter."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from puna import LLM, SamplingParams
from puna.entrypoints.cli import run
from support.adapters import module_shapes, random_pairs, write_peft
from support.tiny_model import CONFIG, write_tiny_model

Puna = Callable[..., tuple[int, str, str]]
GREEDY = SamplingParams(temperature=0, max_tokens=6)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    shapes = module_shapes(CONFIG, ("q_proj", "v_proj", "down_proj"))
    return str(write_peft(tmp_path_factory.mktemp("adapter"), random_pairs(shapes, 4, 0)))


@pytest.fixture(scope="module")
def llm(tiny: str, adapter: str) -> LLM:
    return LLM(tiny, enable_lora=True, lora_paths=[f"a={adapter}"])


@pytest.fixture
def puna(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Puna:
    def call(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        status = run(arguments)
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return call


def ways(adapter: str) -> list[list[str]]:
    """How a command is told an adapter: by its path, or by a name that stands for the path."""
    named = [[option, f"b={adapter}", "--adapter", "b"] for option in ("--lora-paths", "--lora-modules")]
    return [["--adapter", adapter], *named]


def test_texts(puna: Puna, tiny: str, adapter: str, llm: LLM) -> None:
    message = [{"role": "user", "content": "Hello"}]
    expected, bare = (llm.chat(message, GREEDY, adapter=name)[0].outputs[0].text for name in ("a", None))
    assert expected != bare
    assert puna("chat", tiny, "-n", "6", "-q", stdin="Hello\n")[1] == bare + "\n"
    for options in ways(adapter):
        assert puna("chat", tiny, "-n", "6", "-q", *options, stdin="Hello\n") == (0, expected + "\n", "")
        assert puna("generate", tiny, "-p", "Hello", "-n", "6", "-q", *options) == (0, expected + "\n", "")


def test_numbers(puna: Puna, tiny: str, adapter: str, llm: LLM) -> None:
    prose = "The quick brown fox jumps over the lazy dog. " * 3
    vectors, bare = llm.embed(["a cat"], adapter="a"), llm.embed(["a cat"])
    assert not np.array_equal(vectors, bare)
    (score,) = llm.score("Hello", [" you"], adapter="a")
    for options in ways(adapter):
        status, out, err = puna("embed", tiny, "a cat", *options)
        assert (status, err) == (0, "")
        assert np.array_equal(np.array([json.loads(out)], np.float32), vectors)
        out = puna("score", tiny, "-p", "Hello", "--choice", " you", "--json", *options)[1]
        assert json.loads(out)["choices"][0]["logprob"] == score.logprob
        out = puna("perplexity", tiny, "-", "--json", *options, stdin=prose)[1]
        assert json.loads(out)["perplexity"] == pytest.approx(llm.perplexity(prose, adapter="a"), rel=1e-12)
    assert llm.perplexity(prose, adapter="a") != llm.perplexity(prose)


def test_files_of_requests(puna: Puna, tiny: str, adapter: str, llm: LLM, tmp_path: Path) -> None:
    asked = {"prompt": "Hello", "max_tokens": 6, "temperature": 0}
    lines = [asked, {**asked, "model": "a"}, {**asked, "model": tiny}, {**asked, "model": "other"}]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected, bare = (llm.generate("Hello", GREEDY, adapter=name)[0].outputs[0].text for name in ("a", None))
    for options, first in ((["--adapter", "a"], expected), ([], bare)):
        output.unlink(missing_ok=True)
        arguments = ["batch", str(source), "-o", str(output), "-m", tiny, "--lora-paths", f"a={adapter}", "-q"]
        assert puna(*arguments, "--enable-lora", *options)[0] == 1  # the last line names nothing that is loaded
        results = sorted(map(json.loads, output.read_text().splitlines()), key=lambda line: str(line["custom_id"]))
        bodies = [line["response"]["body"] for line in results]
        assert [body["choices"][0]["text"] for body in bodies[:3]] == [first, expected, bare]
        assert [body["model"] for body in bodies[:3]] == ["a" if options else tiny, "a", tiny]
        assert bodies[3]["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("command", ["chat", "generate -p x", "embed x", "score -p x --choice y", "perplexity -"])
def test_an_adapter_that_is_missing(puna: Puna, tiny: str, tmp_path: Path, command: str) -> None:
    name, *rest = command.split()
    missing = str(tmp_path / "missing")
    status, out, err = puna(name, tiny, *rest, "--adapter", missing, stdin="some words of a text\n")
    assert (status, out) == (3, "") and "does not exist" in err and missing in err
