"""`puna convert` as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from puna.entrypoints.cli import run
from support.converted import write_model

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "schemas" / "convert.json").read_text())


def test_writes_a_file_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import jsonschema

    directory, out = write_model(tmp_path / "hf", "qwen3", dtype="bfloat16"), tmp_path / "model.gguf"
    assert run(["convert", str(directory), str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    jsonschema.validate(report, SCHEMA)
    assert (report["encoding"], report["size_bytes"]) == ("BF16", out.stat().st_size)
    assert run(["convert", str(directory), str(out)]) == 2
    assert "--force" in capsys.readouterr().err
    assert run(["convert", str(directory), str(out), "--force", "--to", "f32"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "F32" in captured.err
    assert run(["generate", str(out), "-p", "Hello", "--max-tokens", "3", "--no-chat", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["usage"]["completion_tokens"] >= 1


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nowhere", "x.gguf"], 2, "nowhere"),
        (["HF", "x.bin"], 2, "ends in .gguf"),
        (["HF", "no/x.gguf"], 2, "there is no directory"),
        (["HF", "x.gguf", "--to", "Q4_K"], 2, "'Q4_K' is not one of"),
    ],
)
def test_wrong_usage(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "HF", "qwen3")
    assert run(["convert", *arguments]) == status
    assert words in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["HF"]
