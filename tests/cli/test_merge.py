"""`puna merge` as a person runs it: values against NumPy, formats, bytes that stay, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from puna.conversion import gguf_file
from puna.entrypoints.cli import run
from puna.entrypoints.llm import LLM
from puna.graph.weights import GGUFWeights, load_weights
from support.adapters import module_shapes, random_pairs, write_gguf_adapter, write_peft
from support.checkpoints import tiny_config
from support.converted import convert, write_model

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "schemas" / "merge.json").read_text())
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "tie_word_embeddings": False,
}
NAMES = ("q_proj", "k_proj", "down_proj")
UPDATED = sorted(f"blk.{layer}.{name}.weight" for layer in (0, 1) for name in ("attn_q", "attn_k", "ffn_down"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "hf", "llama", **SHAPE)


@pytest.fixture(scope="module")
def full(directory: Path) -> Path:
    path = directory.with_name("full.gguf")
    convert(directory, path, "F32")
    return path


@pytest.fixture(scope="module")
def pairs() -> dict[str, Any]:
    return random_pairs(module_shapes(tiny_config("llama", **SHAPE), NAMES), 4, 7)


@pytest.fixture(scope="module")
def adapter(directory: Path, pairs: dict[str, Any]) -> Path:
    return write_peft(directory.with_name("adapter"), pairs, lora_alpha=2)


def values(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(reversed(tensor.shape)))
        for tensor in gguf.GGUFReader(path).tensors
    }


def stored(path: Path) -> dict[str, tuple[str, bytes]]:
    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


def content_id(model: Path) -> str:
    with LLM(model, enable_weight_cache=False) as llm:
        return str(llm.model.model.report.content_id)


def test_directory(
    directory: Path, adapter: Path, pairs: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["merge", str(directory), str(adapter), str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    jsonschema.validate(report, SCHEMA)
    assert sorted(report["merged"]) == sorted(f"{name}.weight" for name in pairs)
    before, after = load_file(directory / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        pair = pairs.get(name.removesuffix(".weight"))
        if pair is None:
            assert np.array_equal(after[name], tensor)
        else:
            a, b = (part.astype(np.float64) for part in pair)
            assert np.array_equal(after[name], (tensor + 0.5 * (b @ a)).astype(np.float32))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (directory / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # A GGUF file of the merged directory is the merged GGUF file.
    convert(out, tmp_path / "first.gguf")
    assert run(["merge", str(directory), str(adapter), str(tmp_path / "second.gguf")]) == 0
    assert stored(tmp_path / "first.gguf") == stored(tmp_path / "second.gguf")


def test_several_files_and_halves(directory: Path, adapter: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    for path in directory.iterdir():
        if path.suffix != ".safetensors":
            (sharded / path.name).write_bytes(path.read_bytes())
    tensors = {name: tensor.astype(np.float16) for name, tensor in load_file(directory / "model.safetensors").items()}
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: tensors[name] for name in some}, sharded / file)
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    assert run(["merge", str(sharded), str(adapter), str(tmp_path / "out")]) == 0
    assert run(["merge", str(directory), str(adapter), str(tmp_path / "whole")]) == 0
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    for file, some in parts.items():
        found = load_file(tmp_path / "out" / file)
        assert sorted(found) == some
        for name, tensor in found.items():
            assert tensor.dtype == np.float16 and np.abs(tensor - expected[name]).max() < 0.01


def test_gguf_files_keep_their_formats(
    full: Path, directory: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    floats, base, out = tmp_path / "floats.gguf", tmp_path / "base.gguf", tmp_path / "out.gguf"
    assert run(["merge", str(full), str(adapter), str(floats)]) == 0
    assert run(["merge", str(directory), str(adapter), str(tmp_path / "other.gguf")]) == 0
    assert stored(floats) == stored(tmp_path / "other.gguf")
    assert run(["quantize", str(full), str(base), "--to", "Q4_K_M"]) == 0
    capsys.readouterr()
    assert run(["merge", str(base), str(adapter), str(out), "--json"]) == 0
    assert sorted(json.loads(capsys.readouterr().out)["merged"]) == UPDATED
    before, after = stored(base), stored(out)
    assert {name: format for name, (format, _) in after.items()} == {n: format for n, (format, _) in before.items()}
    assert sorted(name for name in before if before[name] != after[name]) == UPDATED
    assert after["blk.0.attn_q.weight"][0] == "Q4_K"
    deltas, rounded, plain = values(full), values(out), values(base)
    for name, exact in values(floats).items():
        expected = plain[name] + (exact.astype(np.float64) - deltas[name])
        error = ((rounded[name] - expected) ** 2).sum() / (expected**2).sum()
        assert error < 0.012
    weights = [load_weights(path) for path in (base, out)]
    assert all(isinstance(each, GGUFWeights) for each in weights)
    assert dict(weights[0].metadata.items()).keys() == dict(weights[1].metadata.items()).keys()
    for key in ("general.file_type", "general.quantization_version", "llama.block_count"):
        assert weights[0].metadata[key] == weights[1].metadata[key]


def test_recipes(full: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    floats, first, second = (tmp_path / f"{name}.gguf" for name in ("floats", "first", "second"))
    assert run(["merge", str(full), str(adapter), str(floats)]) == 0
    assert run(["quantize", str(floats), str(first), "--to", "Q4_K_M"]) == 0
    assert run(["merge", str(full), str(adapter), str(second), "--to", "q4_k_m"]) == 0
    assert first.read_bytes() == second.read_bytes()
    arguments = ["merge", str(first), str(adapter), str(tmp_path / "third.gguf"), "--to", "Q8_0"]
    capsys.readouterr()
    assert run(arguments) == 2
    assert "already" in capsys.readouterr().err and not (tmp_path / "third.gguf").exists()
    assert run([*arguments, "--allow-requantize"]) == 0
    assert stored(tmp_path / "third.gguf")["blk.0.attn_q.weight"][0] == "Q8_0"


def test_the_adapter_at_run_time_and_in_the_weights(full: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    assert run(["merge", str(full), str(adapter), str(out)]) == 0
    options: dict[str, Any] = {"dtype": "float32", "kv_cache_dtype": "float32", "enable_weight_cache": False}
    prompt = [[5, 17, 300, 41, 8, 99]]
    with LLM(full, enable_lora=True, lora_paths=[f"a={adapter}"], **options) as llm:
        expected, bare = llm.logits(prompt, adapter="a")[0], llm.logits(prompt)[0]
    with LLM(out, **options) as llm:
        found = llm.logits(prompt)[0]
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max() < np.abs(bare - expected).max()


def test_adapters_of_zeros_and_of_llama_cpp(full: Path, directory: Path, tmp_path: Path) -> None:
    shapes = {"blk.1.attn_output": (256, 256), "output": (1000, 256)}
    pairs = random_pairs(shapes, 3, 5)
    some = write_gguf_adapter(tmp_path / "some.gguf", pairs, 6.0)
    zeros = write_gguf_adapter(tmp_path / "zeros.gguf", {name: (a, 0 * b) for name, (a, b) in pairs.items()}, 6.0)
    assert run(["merge", str(full), str(zeros), str(tmp_path / "same.gguf")]) == 0
    assert (tmp_path / "same.gguf").read_bytes() == full.read_bytes()
    assert run(["merge", str(full), str(some), str(tmp_path / "out.gguf")]) == 0
    before, after = values(full), values(tmp_path / "out.gguf")
    for name, tensor in before.items():
        a, b = (part.astype(np.float64) for part in pairs.get(name.removesuffix(".weight"), (np.zeros(1), np.zeros(1))))
        expected = (tensor + 2 * (b @ a)).astype(np.float32)
        assert np.array_equal(after[name], expected)
    assert run(["merge", str(directory), str(some), str(tmp_path / "out")]) == 0
    assert content_id(tmp_path / "out") != content_id(directory)


@pytest.mark.parametrize(
    ("out", "more", "status", "words"),
    [
        ("out", ["--to", "Q8_0"], 2, "is for OUT.gguf"),
        ("out.gguf", ["--allow-requantize"], 2, "is for --to RECIPE"),
        ("out.gguf", ["--to", "Q9"], 2, "is no recipe"),
        ("no/out", [], 2, "there is no directory"),
        ("no/out.gguf", [], 2, "there is no directory"),
    ],
)
def test_wrong_usage(
    directory: Path,
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    out: str,
    more: list[str],
    status: int,
    words: str,
) -> None:
    assert run(["merge", str(directory), str(adapter), str(tmp_path / out), *more]) == status
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_not_replaced(
    directory: Path, full: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(model: Path, out: Path, *more: str) -> str:
        assert run(["merge", str(model), str(adapter), str(out), *more]) == 2
        return capsys.readouterr().err

    files = {path: path.read_bytes() for path in [*directory.iterdir(), full]}
    link = tmp_path / "link"
    link.symlink_to(directory)
    assert "is the model itself" in refused(full, full, "--force")
    for out in (directory, link, directory.parent):
        assert "name another" in refused(directory, out, "--force")
    assert "name OUT.gguf" in refused(full, tmp_path / "out")
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "mine").write_text("kept")
    assert "--force replaces it" in refused(directory, tmp_path / "things")
    assert "is no model's directory" in refused(directory, tmp_path / "things", "--force")
    assert (tmp_path / "things" / "mine").read_text() == "kept"
    assert run(["merge", str(directory), str(adapter), str(tmp_path / "out")]) == 0
    assert "--force replaces it" in refused(directory, tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").write_bytes(b"")
    assert run(["merge", str(directory), str(adapter), str(tmp_path / "out"), "--force"]) == 0
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 1000
    assert files == {path: path.read_bytes() for path in files}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out", "things"]


def test_adapters_that_do_not_fit(
    directory: Path, pairs: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    name = "model.layers.0.self_attn.q_proj"
    a, b = pairs[name]
    cases = {
        "shape": ({name: (a[:, :-1], b)}, "the model's has 256 of 256"),
        "numbers": ({name: (a * np.nan, b)}, "not finite"),
        "huge": ({name: (np.full_like(a, 3e30), np.full_like(b, 3e30))}, "when the adapter is in it"),
    }
    for case, (changed, words) in cases.items():
        bad = write_peft(tmp_path / case, changed)
        for target in (out / "x", out / "x.gguf"):
            assert run(["merge", str(directory), str(bad), str(target)]) == 3
            assert words in capsys.readouterr().err
            assert not list(out.iterdir())
    assert run(["merge", str(directory), str(tmp_path / "none"), str(out / "x")]) == 3
    assert "does not exist" in capsys.readouterr().err


def test_one_tensor_for_embedding_and_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tied = write_model(tmp_path / "tied", "llama", **(SHAPE | {"tie_word_embeddings": True}))
    convert(tied, tmp_path / "tied.gguf")
    pairs = random_pairs(module_shapes(tiny_config("llama", **SHAPE, vocab_size=1000), ["lm_head"]), 2, 3)
    adapter = write_peft(tmp_path / "adapter", pairs)
    for model, out in ((tied, "out"), (tied, "out.gguf"), (tmp_path / "tied.gguf", "out.gguf")):
        assert run(["merge", str(model), str(adapter), str(tmp_path / out)]) == 3
        assert "tie_word_embeddings" in capsys.readouterr().err
        assert not (tmp_path / out).exists()


def test_full_disk(
    directory: Path,
    full: Path,
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any, **_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(gguf_file.np, "ascontiguousarray", fail)
    monkeypatch.setattr("puna.conversion.merge.shutil.copyfile", fail)
    for model, out in ((full, "out.gguf"), (directory, "out")):
        assert run(["merge", str(model), str(adapter), str(tmp_path / out)]) == 1
        assert "No space left" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


_INTERRUPTED = """
import os, signal, sys, time
from puna.conversion import merge
from puna.entrypoints.cli import main
plain, number = merge._merged, int(sys.argv.pop(1))
def slow(*arguments):
    if not os.path.exists("started"):
        open("started", "w").close()
        os.kill(os.getpid(), number)
        time.sleep(60)
    return plain(*arguments)
merge._merged = slow
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("out", ["out", "out.gguf"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted(directory: Path, adapter: Path, tmp_path: Path, out: str, number: signal.Signals) -> None:
    """What there was stays; Ctrl-C leaves nothing behind, and the same command does its work afterwards."""
    command = ["merge", str(directory), str(adapter), str(tmp_path / out), "--force"]
    assert run(command) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    program = [sys.executable, "-c", _INTERRUPTED, str(int(number)), *command]
    process = subprocess.run(program, cwd=tmp_path, capture_output=True, timeout=30, check=False)
    assert process.returncode != 0 and b"Traceback" not in process.stderr
    (tmp_path / "started").unlink()
    left = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path: left.get(path) for path in before} == before
    if number == signal.SIGINT:
        assert left.keys() == before.keys()
    assert run(command) == 0
    assert {path: path.read_bytes() for path in before} == before


_PEAK = """
import sys
from puna.entrypoints.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
lines = open("/proc/self/status").read().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path) -> None:
    """The peak, mapped files included, does not grow with the number of layers."""
    peaks: dict[str, list[int]] = {"out": [], "out.gguf": []}
    for layers in (2, 32):
        sizes = {**SHAPE, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": layers}
        model = write_model(tmp_path / f"hf{layers}", "llama", **sizes)
        shapes = module_shapes(tiny_config("llama", **sizes), ("gate_proj", "up_proj", "down_proj"))
        adapter = write_peft(tmp_path / f"adapter{layers}", random_pairs(shapes, 4, 1))
        for out, found in peaks.items():
            program = [sys.executable, "-c", _PEAK, "merge", str(model), str(adapter), str(tmp_path / out), "--force"]
            text = subprocess.run([*program, "--json"], stdout=subprocess.PIPE, timeout=120, check=True).stdout
            found.append(int(text.split()[-1]))
        whole = sum(path.stat().st_size for path in model.iterdir())
    for out, (small, large) in peaks.items():
        assert (large - small) * 1024 < whole / 4, (out, peaks, whole)
