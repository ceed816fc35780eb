"""`puna verify`: what it compares, that it finds what is wrong and where, and its exit status."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from puna.entrypoints import verification
from puna.entrypoints.cli import run
from puna.entrypoints.layer_runs import LayerRun
from support.converted import convert, write_model

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "schemas" / "verify.json").read_text())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`hf`, its files `f32.gguf` and `bf16.gguf`, and `other` with other weights."""
    root = tmp_path_factory.mktemp("verify")
    directory = write_model(root / "hf", "llama", "llama3")
    convert(directory, root / "f32.gguf")
    convert(directory, root / "bf16.gguf", "BF16")
    write_model(root / "other", "llama", "llama3", seed=1)
    return root


def verified(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status = run(["verify", *arguments, "--json", "--tokens", "24"])
    report = json.loads(capsys.readouterr().out)
    jsonschema.validate(report, SCHEMA)
    return status, report


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in report["checks"]}


def test_a_directory_alone(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = verified(capsys, str(models / "hf"))
    assert (status, report["agrees"]) == (0, True)
    assert [check["name"] for check in report["checks"]] == ["tokenizer", "kernels", "rounding", "variants"]
    assert by_name(report)["kernels"]["values"]["largest_difference"] < 1e-4


@pytest.mark.parametrize("file", ["f32.gguf", "bf16.gguf"])
def test_a_file_against_its_directory(models: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    status, report = verified(capsys, str(models / file), "--against", str(models / "hf"))
    assert status == 0, report
    checks = by_name(report)
    assert len(checks) == 8 - 1 + 1
    equal = checks["tensors"]["values"]["equal"] == checks["tensors"]["values"]["tensors"]
    assert equal is (file == "f32.gguf")
    assert checks["predictions"]["values"]["top1"] >= (1.0 if file == "f32.gguf" else 0.9)


def test_other_weights(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = verified(capsys, str(models / "hf"), "--against", str(models / "other"))
    assert status == 1
    checks = by_name(report)
    assert {name for name, check in checks.items() if not check["agrees"]} == {"tensors", "predictions"}
    assert "layer 0 differs first" in checks["predictions"]["detail"]


def changed(models: Path, tmp_path: Path, **changes: Any) -> Path:
    """A copy of the directory with keys of its configuration changed."""
    directory = write_model(tmp_path / "changed", "llama", "llama3")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    return directory


def test_a_number(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = changed(models, tmp_path, rms_norm_eps=1e-3)
    status, report = verified(capsys, str(models / "hf"), "--against", str(directory))
    assert status == 1
    assert "norm_eps is 1e-05 in the first model, 0.001 in the second" in by_name(report)["numbers"]["detail"]


def test_rows_of_one_matrix_in_another_order(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = changed(models, tmp_path)
    path, name = directory / "model.safetensors", "model.layers.1.self_attn.q_proj.weight"
    tensors = load_file(path)
    tensors[name] = np.ascontiguousarray(tensors[name][::-1])
    save_file(tensors, path)
    status, report = verified(capsys, str(models / "f32.gguf"), "--against", str(directory))
    checks = by_name(report)
    assert status == 1
    assert checks["tensors"]["values"]["differ"] == ["blk.1.attn_q.weight"]
    assert "layer 1 differs first" in checks["predictions"]["detail"]


def test_a_tokenizer(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = changed(models, tmp_path)
    content = json.loads((directory / "tokenizer.json").read_text())
    del content["model"]["merges"][:100]
    (directory / "tokenizer.json").write_text(json.dumps(content))
    status, report = verified(capsys, str(models / "hf"), "--against", str(directory))
    assert status == 1 and not by_name(report)["tokenizer"]["agrees"]


def test_a_kernel(models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A layer that comes out wrong of the kernels is named; so is a variant with other bits."""
    real = verification.run_layers

    def broken(header: Any, ids: Any, **options: Any) -> LayerRun:
        found = real(header, ids, **options)
        if options.get("variant") or options.get("executor") == "reference":
            return found
        states = found.states.copy()
        states[1:, 3] += 0.1 * np.abs(states[1]).max()
        return replace(found, states=states)

    monkeypatch.setattr(verification, "run_layers", broken)
    status, report = verified(capsys, str(models / "hf"))
    checks = by_name(report)
    assert status == 1
    assert "differ in layer 1 first" in checks["kernels"]["detail"] and checks["kernels"]["values"]["first"] == 1
    if len(checks["variants"]["values"]["variants"]) > 1:
        assert not checks["variants"]["agrees"]


def test_for_people_and_wrong_usage(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("One short text.")
    arguments = ["verify", str(models / "hf"), "--text", str(tmp_path / "text.txt")]
    assert run(arguments) == 0
    assert "kernels" in capsys.readouterr().out
    (tmp_path / "text.txt").write_text("")
    assert run(arguments) == 2
    assert run(["verify", str(models / "hf"), "--text", str(tmp_path / "none.txt")]) == 2
    assert run(["verify", str(models / "hf"), "--against", str(tmp_path)]) == 2
