"""`puna quantize` as a person runs it, and `--quantize` when a model is loaded."""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gguf
import jsonschema
import numpy as np
import pytest

from puna.conversion import gguf_file
from puna.engine.packed_cache import PackedCache
from puna.entrypoints.cli import run
from puna.entrypoints.importance import measure_importance
from puna.entrypoints.llm import LLM
from puna.graph.quantization import RECIPES
from puna.graph.weights import GGUFWeights, load_weights, quantize
from puna.tokenization import load_tokenizer
from support.converted import convert, write_model

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "schemas" / "quantize.json").read_text())
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "hf", "llama", dtype="bfloat16", **SHAPE)


@pytest.fixture(scope="module")
def full(directory: Path) -> Path:
    path = directory.with_name("full.gguf")
    convert(directory, path, "F32")
    return path


def formats(path: Path) -> dict[str, str]:
    return {name: tensor.data().format for name, tensor in load_weights(path).items()}


def values(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(reversed(tensor.shape)))
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_writes_a_model(full: Path, tmp_path: Path, recipe: str) -> None:
    out = tmp_path / "out.gguf"
    assert run(["quantize", str(full), str(out), "--to", recipe.lower()]) == 0
    weights = load_weights(out)
    assert isinstance(weights, GGUFWeights)
    assert weights.metadata["general.file_type"] == RECIPES[recipe].file_type
    assert weights.metadata["general.quantization_version"] == 2
    assert formats(out)["blk.1.ffn_up.weight"] == RECIPES[recipe].format
    found = values(out)
    for name, expected in values(full).items():
        rest = found[name].astype(np.float64) - expected
        error = (rest**2).sum() / (expected.astype(np.float64) ** 2).sum()
        assert error < {"2": 0.1, "3": 0.04}.get(recipe.lstrip("IQ")[0], 0.012)


def test_directory_and_file_give_the_same_file(directory: Path, full: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    assert run(["quantize", str(directory), str(first), "--to", "Q4_K_M"]) == 0
    assert run(["quantize", str(full), str(second), "--to", "Q4_K_M", "--threads", "1"]) == 0
    assert first.read_bytes() == second.read_bytes()


def test_report_and_what_the_user_says(full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    choice = ["--tensor-type", r"blk\.0\.=Q8_0", "--tensor-type", "ffn_down=q2_k", "--token-embedding-type", "F16"]
    assert run(["quantize", str(full), str(out), "--to", "Q5_K_S", *choice, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    jsonschema.validate(report, SCHEMA)
    found = formats(out)
    assert {tensor["name"]: tensor["to"] for tensor in report["tensors"]} == found
    assert report["is_written"] and report["tensor_bytes"] < out.stat().st_size < report["source_bytes"]
    assert (found["blk.0.ffn_down.weight"], found["blk.1.ffn_down.weight"]) == ("Q8_0", "Q2_K")
    assert (found["token_embd.weight"], found["blk.2.attn_q.weight"]) == ("F16", "Q5_K")
    assert run(["quantize", str(full), str(tmp_path / "dry.gguf"), "--to", "Q5_K_S", "--dry-run"]) == 0
    assert "blk.2.attn_q.weight  256 × 256  F32 → Q5_K" in capsys.readouterr().out
    assert not (tmp_path / "dry.gguf").exists()


def test_rows_that_do_not_fit_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    narrow = write_model(tmp_path / "narrow", "llama", **(SHAPE | {"intermediate_size": 544}))
    assert run(["quantize", str(narrow), str(tmp_path / "out.gguf"), "--to", "Q4_K_M"]) == 0
    assert "2 × Q5_0 instead of Q4_K (544 columns)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "Q4_K_XL"], "'Q4_K_XL' is no recipe; there is: Q2_K"),
        (["--to", "Q8_0", "--tensor-type", "ffn"], "not of the form PATTERN=TYPE"),
        (["--to", "Q8_0", "--tensor-type", "(=Q8_0"], "is no regular expression"),
        (["--to", "Q8_0", "--tensor-type", "ffn=Q9"], "'Q9' is no format to quantize to"),
        (["--to", "Q8_0", "--output-tensor-type", "IQ1_S"], "'IQ1_S' is no format to quantize to"),
    ],
)
def test_wrong_usage(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(["quantize", str(full), str(tmp_path / "out.gguf"), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_files_that_are_not_replaced(full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(full)
    before = full.read_bytes()
    for out in (full, link):
        assert run(["quantize", str(full), str(out), "--to", "Q8_0", "--force"]) == 2
        assert "is the model itself" in capsys.readouterr().err
    other = tmp_path / "other.gguf"
    other.write_text("kept")
    assert run(["quantize", str(full), str(other), "--to", "Q8_0"]) == 2
    assert "--force replaces it" in capsys.readouterr().err and other.read_text() == "kept"
    assert run(["quantize", str(full), str(other), "--to", "Q8_0", "--force"]) == 0
    assert full.read_bytes() == before and formats(other)["blk.0.attn_q.weight"] == "Q8_0"


def test_quantized_files(full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    assert run(["quantize", str(full), str(first), "--to", "Q8_0"]) == 0
    assert run(["quantize", str(first), str(second), "--to", "Q4_0"]) == 2
    assert "is Q8_0 already" in capsys.readouterr().err and not second.exists()
    assert run(["quantize", str(first), str(second), "--to", "Q4_0", "--allow-requantize"]) == 0
    assert formats(second)["blk.0.attn_q.weight"] == "Q4_0"
    third = tmp_path / "third.gguf"
    assert run(["quantize", str(first), str(third), "--to", "Q8_0"]) == 0
    assert third.read_bytes() == first.read_bytes()


def test_importance_of_a_text(
    directory: Path, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "Rain fell on the harbour, and nobody came. " * 30
    (tmp_path / "text").write_text(text)
    importance = measure_importance(str(full), text)
    # The first layer's inputs, by hand: rows of the embedding, normed.
    stored = values(full)
    ids = load_tokenizer(directory).encode(text)
    rows = stored["token_embd.weight"][ids].astype(np.float64)
    epsilon = json.loads((directory / "config.json").read_text())["rms_norm_eps"]
    normed = rows / np.sqrt((rows**2).mean(1, keepdims=True) + epsilon) * stored["blk.0.attn_norm.weight"]
    for name in ("attn_q", "attn_k", "attn_v"):
        assert np.allclose(importance[f"blk.0.{name}.weight"], (normed**2).mean(0), rtol=1e-4)
    assert set(importance) == {name for name in stored if stored[name].ndim == 2} - {"token_embd.weight"}

    plain, weighted = tmp_path / "plain.gguf", tmp_path / "weighted.gguf"
    for out, more in ((plain, []), (weighted, ["--importance", str(tmp_path / "text")])):
        assert run(["quantize", str(full), str(out), "--to", "Q3_K_S", "--pure", *more]) == 0
    errors = [
        sum(((found[name] - stored[name]) ** 2 * weights).sum() for name, weights in importance.items())
        for found in (values(plain), values(weighted))
    ]
    assert errors[1] < 0.99 * errors[0]
    (tmp_path / "empty").write_text("")
    capsys.readouterr()
    arguments = ["--to", "Q4_0", "--importance"]
    assert run(["quantize", str(full), str(tmp_path / "x.gguf"), *arguments, str(tmp_path / "empty")]) == 2
    assert "the text has no tokens" in capsys.readouterr().err
    assert run(["quantize", str(full), str(tmp_path / "x.gguf"), *arguments, str(tmp_path / "none")]) == 2
    assert "cannot be read" in capsys.readouterr().err and not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(("value", "text"), [(np.nan, "nan"), (np.inf, "inf"), (1e30, "too large for Q8_0")])
def test_weights_that_are_no_numbers(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float, text: str
) -> None:
    damaged, out = tmp_path / "damaged.gguf", tmp_path / "out.gguf"
    damaged.write_bytes(full.read_bytes())
    reader = gguf.GGUFReader(damaged, "r+")
    tensor = next(t for t in reader.tensors if t.name == "blk.2.ffn_gate.weight")
    tensor.data[17, 5] = value
    reader.data.flush()
    assert run(["quantize", str(damaged), str(out), "--to", "Q8_0"]) == 3
    error = capsys.readouterr().err
    assert "blk.2.ffn_gate.weight" in error and "row 17, column 5" in error and text in error
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.gguf"]


def test_cut_files(full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(full.read_bytes()[:-1000])
    assert run(["quantize", str(cut), str(tmp_path / "out.gguf"), "--to", "Q8_0"]) == 3
    assert "past the end of the file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["cut.gguf"]


def test_full_disk(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """A disk that is full after some pieces."""

        def __init__(self, pieces: int) -> None:
            self.pieces = pieces

        def __call__(self, *arguments: Any) -> Any:
            self.pieces -= 1
            if self.pieces < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments)

    original = gguf_file.np.ascontiguousarray
    monkeypatch.setattr(gguf_file.np, "ascontiguousarray", Full(5), raising=True)
    status = run(["quantize", str(full), str(tmp_path / "out.gguf"), "--to", "Q8_0"])
    assert status != 0 and "No space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_leaves_nothing(full: Path, tmp_path: Path) -> None:
    big = write_model(tmp_path / "big", "llama", **(SHAPE | {"hidden_size": 1024, "intermediate_size": 4096}))
    out = tmp_path / "out" / "out.gguf"
    out.parent.mkdir()
    command = [sys.executable, "-m", "puna.entrypoints.cli", "quantize", str(big), str(out), "--to", "Q2_K"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(out.parent.iterdir()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in error
    assert not list(out.parent.iterdir())


@pytest.mark.slow
def test_memory_is_that_of_a_piece(tmp_path: Path) -> None:
    # One tensor of 128 MiB in float32 and several smaller ones: far more than the process may have beside its start.
    wide = SHAPE | {"hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 32768}
    big = write_model(tmp_path / "big", "llama", **wide)
    script = (
        "import resource, sys; from puna.entrypoints.cli import run; from puna.conversion import open_checkpoint;"
        "from puna import _native; open_checkpoint(sys.argv[1]);"
        "limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "status = run(['quantize', *sys.argv[1:], '--to', 'Q4_0']);"
        "print(status, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - limit)"
    )
    arguments = [sys.executable, "-c", script, str(big), str(tmp_path / "out.gguf")]
    found = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()
    size = (big / "model.safetensors").stat().st_size
    assert size > 300e6 and found[0] == "0"
    # ru_maxrss counts pages of the mapped file, too: these go tensor by tensor.
    assert int(found[1]) * 1024 < 220e6


# ---- at load --------------------------------------------------------------------------------------------------------


def greedy(model: Path, **options: Any) -> list[int]:
    from puna import SamplingParams

    with LLM(model, threads=2, **options) as llm:
        (answer,) = llm.generate("Hello world", SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
        return list(answer.outputs[0].token_ids)


def content_id(model: Path, **options: Any) -> str:
    with LLM(model, **options) as llm:
        return str(llm.model.model.report.content_id)


@pytest.mark.parametrize("recipe", ["Q4_K_M", "F16", "IQ4_XS"])
def test_loading_by_a_recipe_is_loading_the_quantized_file(
    directory: Path, full: Path, tmp_path: Path, recipe: str
) -> None:
    out = tmp_path / "out.gguf"
    assert run(["quantize", str(full), str(out), "--to", recipe]) == 0
    expected = content_id(out, enable_weight_cache=False)
    assert content_id(full, quantize=recipe, enable_weight_cache=False) == expected
    assert greedy(full, quantize=recipe) == greedy(out)


def test_a_second_start_maps_what_the_first_one_quantized(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUNA_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PUNA_CACHE_LIMIT", "1G")
    small = functools.partial(PackedCache, min_bytes=0)
    monkeypatch.setattr("puna.entrypoints.weight_cache.PackedCache", small)

    def loaded(**options: Any) -> tuple[int, str]:
        with LLM(full, **options) as llm:
            for thread in threading.enumerate():
                if thread.name == "puna-weight-cache":
                    thread.join()
            report = llm.model.model.report
            return report.mapped_bytes, str(report.content_id)

    first = loaded(quantize="Q4_K_M")
    assert first[0] == 0

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("quantized again")

    plain = quantize.quantized_pieces
    monkeypatch.setattr(quantize, "quantized_pieces", never)
    second = loaded(quantize="Q4_K_M")
    assert second[0] > 0 and second[1] == first[1]
    monkeypatch.setattr(quantize, "quantized_pieces", plain)
    other = loaded(quantize="Q4_K_S")
    assert other[0] == 0 and other[1] != first[1]
    assert loaded()[1] not in (first[1], other[1])
    monkeypatch.setattr(quantize, "QUANTIZER_VERSION", quantize.QUANTIZER_VERSION + 1)
    assert loaded(quantize="Q4_K_M")[0] == 0


def test_option_of_the_command_line(full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-p", "Hello", "-n", "3", "--no-chat", "--quiet", "--no-weight-cache"]
    assert run(["generate", str(full), *arguments, "--quantize", "q8_0"]) == 0
    assert run(["generate", str(full), *arguments, "--quantize", "Q7"]) == 2
    assert "quantize: 'Q7' is no recipe" in capsys.readouterr().err
    out = tmp_path / "out.gguf"
    assert run(["quantize", str(full), str(out), "--to", "Q8_0"]) == 0
    assert run(["generate", str(out), *arguments, "--quantize", "Q4_0"]) == 2
    assert "is Q8_0 already" in capsys.readouterr().err
