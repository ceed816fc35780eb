"""`puna generate`: the options that choose, end and report tokens reach the values that they are named after."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest

from puna.entrypoints.cli import run
from puna.entrypoints.commands.generate import generate
from puna.entrypoints.commands.options import SAMPLING_VALUES
from puna.pipelines.sampling_params import SamplingParams
from support.tiny_model import write_tiny_model

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "schemas" / "generate.json").read_text())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny")))


def puna(capsys: pytest.CaptureFixture[str], model: str, *arguments: str) -> tuple[int, str, str]:
    status = run(["generate", model, *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def report(capsys: pytest.CaptureFixture[str], model: str, *arguments: str) -> Any:
    status, out, err = puna(capsys, model, "-p", "Hello", "--json", *arguments)
    assert (status, err) == (0, "")
    value = json.loads(out)
    jsonschema.validate(value, SCHEMA)
    return value


def test_every_value_has_an_option_and_every_option_a_value() -> None:
    options = {parameter.name for parameter in generate.params if isinstance(parameter, click.Option)}
    assert set(SAMPLING_VALUES) <= options
    assert set(SAMPLING_VALUES) <= set(inspect.signature(SamplingParams).parameters)


def test_log_probabilities_are_in_the_object(capsys: pytest.CaptureFixture[str], tiny: str) -> None:
    value = report(capsys, tiny, "-n", "3", "--logprobs", "2", "--prompt-logprobs", "0")
    assert [position[0]["token_id"] for position in value["logprobs"]] == value["token_ids"]
    assert [[entry["rank"] for entry in position] for position in value["logprobs"]] == [[1, 2]] * 3
    assert value["prompt_logprobs"][0] is None
    found = [position[0]["token_id"] for position in value["prompt_logprobs"][1:]]
    assert found == value["prompt_token_ids"][1:]
    status, out, err = puna(capsys, tiny, "-p", "Hello", "--logprobs", "2")
    assert (status, out) == (2, "") and "--json" in err


def test_ways_to_end(capsys: pytest.CaptureFixture[str], tiny: str) -> None:
    late = report(capsys, tiny, "--ignore-eos", "--deadline", "1e-9")
    assert (late["finish_reason"], late["stop_reason"], late["token_ids"]) == ("abort", "deadline", [])
    text = report(capsys, tiny, "-n", "9", "--ignore-eos")["text"]
    kept = report(capsys, tiny, "-n", "9", "--ignore-eos", "--stop", text[3:5], "--include-stop")
    assert (kept["text"], kept["stop_reason"]) == (text[: text.index(text[3:5]) + 2], text[3:5])


def test_a_long_prompt_is_cut_when_asked(capsys: pytest.CaptureFixture[str], tiny: str) -> None:
    arguments = ["-p", "x " * 400, "-n", "2", "--no-chat"]
    assert puna(capsys, tiny, *arguments)[0] == 2
    status, _out, err = puna(capsys, tiny, *arguments, "--truncate-prompt", "50")
    assert status == 0 and "tokens of the prompt cut off" in err


def test_no_token_is_written_twice(capsys: pytest.CaptureFixture[str], tiny: str) -> None:
    once = report(capsys, tiny, "-n", "30", "--ignore-eos", "--no-repeat-ngram-size", "1")
    assert not set(once["token_ids"]) & set(once["prompt_token_ids"]) and len(set(once["token_ids"])) == 30


def test_defaults_of_the_checkpoint_are_shown_and_can_be_left_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = write_tiny_model(tmp_path / "m")
    (model / "generation_config.json").write_text('{"temperature": 0.4, "top_p": 0.8}')
    arguments = ["-p", "Hello", "-n", "2", "--seed", "1"]
    assert "temperature 0.4, top_p 0.8 from generation_config.json" in puna(capsys, str(model), *arguments)[2]
    changed = puna(capsys, str(model), *arguments, "--temperature", "1")[2]
    assert "top_p 0.8 from generation_config.json" in changed and "temperature" not in changed
    assert "greedy]" in puna(capsys, str(model), *arguments, "--no-generation-config")[2]


def test_pages_are_found_by_a_later_run(capsys: pytest.CaptureFixture[str], tiny: str, tmp_path: Path) -> None:
    prompt = " ".join(str(number) for number in range(60))
    options = ("-n", "4", "--prefix-cache-dir", str(tmp_path / "pages"), "--prefix-cache-bytes", "1M")

    def ask() -> Any:
        status, out, err = puna(capsys, tiny, "-p", prompt, "--json", *options)
        assert (status, err) == (0, "")
        return json.loads(out)

    first, second = ask(), ask()
    assert first["usage"]["cached_tokens"] == 0 and second["usage"]["cached_tokens"] > 0
    assert first["token_ids"] == second["token_ids"]
    assert sum(path.stat().st_size for path in (tmp_path / "pages").rglob("*.kv")) <= 1 << 20


def test_copies_give_the_same_text(capsys: pytest.CaptureFixture[str], tiny: str) -> None:
    alone = report(capsys, tiny, "-n", "5", "-t", "2")
    assert report(capsys, tiny, "-n", "5", "-t", "2", "--data-parallel-degree", "2")["token_ids"] == alone["token_ids"]


@pytest.mark.parametrize("value", ["much", "-1", "0"])
def test_a_wrong_size_is_refused(capsys: pytest.CaptureFixture[str], tiny: str, tmp_path: Path, value: str) -> None:
    wanted = ("--prefix-cache-dir", str(tmp_path), f"--prefix-cache-bytes={value}")
    status, out, err = puna(capsys, tiny, "-p", "Hello", *wanted)
    assert (status, out) == (2, "") and "prefix" in err
