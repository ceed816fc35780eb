"""Bad input to the commands: one sentence, the right exit status, no traceback, and never a hang."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puna.entrypoints.cli import run
from support.checkpoints import GGUF_FAMILIES, tiny_config, tiny_tensors
from support.gguf_checkpoints import GGUF_ARCHITECTURE, write_gguf
from support.tiny_model import write_tiny_model

Puna = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), max_position_embeddings=1 << 20)


@pytest.fixture
def puna(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Puna:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def call(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = run(arguments)
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err and "internal fault" not in captured.err
        return status, captured.out, captured.err

    return call


def refused(answer: tuple[int, str, str], status: int, message: str) -> None:
    """Nothing on standard output, one sentence on standard error."""
    assert answer[:2] == (status, "") and message in answer[2], answer
    assert answer[2].startswith("error: ") and answer[2].count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        (["--seed", "1" + "0" * 30], "seed"),
        (["--top-k", "-1" + "0" * 30], "top_k"),
        (["--max-length", "1" + "0" * 30], "max_length"),
        (["--threads", "1" + "0" * 30], "num_threads"),
        (["--threads", "1025"], "num_threads"),
        (["--stop", ""], "stop"),
        (["--repetition-penalty", "0"], "repetition_penalty"),
        (["--repetition-penalty", "inf"], "repetition_penalty"),
        (["--temperature", "nan"], "temperature"),
        (["--chat-template", "/"], "chat_template"),
        (["--revision", "../.."], "revision"),
    ],
)
def test_absurd_options(puna: Puna, tiny: Path, arguments: list[str], param: str) -> None:
    refused(puna("generate", str(tiny), "-p", "Hello", *arguments), 2, param)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--temperature", "1", "--top-k", "1" + "0" * 30],
        ["--temperature", "1e-300"],
        ["--repetition-penalty", "1e-300"],
        ["--repetition-penalty", "1e300"],
        ["--threads", "1024"],
        ["--stop", "\0"],
        ["--system", ""],
    ],
)
def test_extreme_options_that_mean_something(puna: Puna, tiny: Path, arguments: list[str]) -> None:
    status, out, err = puna("generate", str(tiny), "-p", "Hello", "-n", "3", "--json", "--ignore-eos", *arguments)
    assert (status, err) == (0, "") and len(json.loads(out)["token_ids"]) == 3


def test_more_tokens_than_fit_end_with_the_context(puna: Puna, tmp_path: Path) -> None:
    model = str(write_tiny_model(tmp_path / "m"))
    status, out, _err = puna("generate", model, "-p", "x", "-n", "1" + "0" * 30, "--ignore-eos", "--json")
    assert status == 0 and json.loads(out)["usage"]["total_tokens"] == 256


def process(*arguments: str | bytes, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "puna.entrypoints.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize("command", [["generate", "-p"], ["tokenize"]])
def test_arguments_that_are_not_utf8(tiny: Path, command: list[str]) -> None:
    with process(command[0], str(tiny), *command[1:], b"\xff\xfe") as child:
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (2, b"")
    assert err.startswith(b"error: prompt: ") and err.count(b"\n") == 1


def test_standard_input_that_is_not_utf8(puna: Puna, tiny: Path) -> None:
    refused(puna("generate", str(tiny), "-p", "-", stdin=b"ab\xff"), 2, "not UTF-8 (byte 2)")
    refused(puna("tokenize", str(tiny), "-", stdin=b"\xc3"), 2, "not UTF-8 (byte 0)")


@pytest.mark.parametrize("name", ["x" * 5000, "\n", "a\0b", "~no such user/x", "a/b/c", "/dev/nothing", "http://a/b"])
@pytest.mark.parametrize("command", ["show", "tokenize", "generate"])
def test_names_of_nothing(puna: Puna, command: str, name: str) -> None:
    more = {"show": (), "tokenize": ("x",), "generate": ("-p", "x")}[command]
    status, out, err = puna(command, name, *more)
    assert (status, out) == (2, "") and "not found" in err


def test_files_that_are_no_models(puna: Puna, tmp_path: Path) -> None:
    contents = {
        "empty.gguf": b"",
        "text.gguf": b"hello " * 20,
        "counts.gguf": b"GGUF\x03\0\0\0" + b"\xff" * 16,
        "version.gguf": b"GGUF\x09\0\0\0" + bytes(64),
        "pickle.bin": b"\x80\x02",
        "pickle.pt": b"PK\x03\x04",
        "text.txt": b"x",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        for arguments in (("show", "--no-probe"), ("generate", "-p", "x"), ("tokenize", "x")):
            refused(puna(arguments[0], str(tmp_path / name), *arguments[1:]), 3, name)
    os.mkfifo(tmp_path / "fifo.gguf")
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    (tmp_path / "directory.gguf").mkdir()
    for name in ("fifo.gguf", "loop.gguf", "directory.gguf"):
        assert puna("show", str(tmp_path / name))[0] == 2


BAD_FILES = [
    ("config.json", b"{"),
    ("config.json", b"[]"),
    ("config.json", b"\xff"),
    ("config.json", b'{"a":' * 100_000),
    ("tokenizer.json", b"{}"),
    ("tokenizer.json", b"\xff"),
    ("tokenizer.json", b"[" * 100_000),
    ("tokenizer_config.json", b"{"),
    ("tokenizer_config.json", b'{"chat_template": 5}'),
    ("tokenizer_config.json", b'{"chat_template": "{{"}'),
    ("generation_config.json", b"["),
    ("generation_config.json", b'{"temperature": "x"}'),
    ("generation_config.json", b'{"eos_token_id": [-5]}'),
    ("model.safetensors", b""),
    ("model.safetensors", b"\xff" * 100),
]


@pytest.mark.parametrize(("name", "content"), BAD_FILES, ids=lambda value: repr(value)[:40])
def test_files_beside_the_weights(puna: Puna, tiny: Path, tmp_path: Path, name: str, content: bytes) -> None:
    model = shutil.copytree(tiny, tmp_path / "m")
    (model / name).write_bytes(content)
    refused(puna("generate", str(model), "-p", "x", "-n", "1"), 3, name)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ messages.__class__.__mro__ }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_chat_templates_that_attack(puna: Puna, tiny: Path, tmp_path: Path, template: str) -> None:
    model = shutil.copytree(tiny, tmp_path / "m")
    (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": template}))
    begin = time.perf_counter()
    status, out, err = puna("generate", str(model), "-p", "x", "-n", "1")
    assert status in (2, 3) and out == "" and err.count("\n") == 1
    assert time.perf_counter() - begin < 5


def test_end_tokens_outside_the_vocabulary_do_no_harm(puna: Puna, tiny: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny, tmp_path / "m")
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 10**20, 831, 5000]}))
    status, out, _err = puna("generate", str(model), "-p", "x", "-n", "2", "--json")
    assert status == 0 and json.loads(out)["token_ids"]


SIZES = {
    "hidden_size": (0, -64, 65, 2**31 - 1, 10**30, 1e300, "64", [64], None, True),
    "intermediate_size": (0, 1, 95, 2**31 - 1),
    "num_hidden_layers": (0, 3, 65, 2**31 - 1),
    "num_attention_heads": (0, 3, 8, 2**31 - 1),
    "num_key_value_heads": (0, 1, 3, 8),
    "vocab_size": (0, 1, 901, 2**31 - 1),
    "head_dim": (0, 3, 15, 32, 2**31 - 1),
    "max_position_embeddings": (0, -1, 10**30),
    "rms_norm_eps": (-1.0, "x", 10**400),
    "rope_theta": (0, -1.0, [], 10**400),
    "rope_scaling": ({"type": "unknown"}, {"type": "linear", "factor": 0}, "x"),
    "hidden_act": ("gelu", 5),
    "attention_bias": (True, "x"),
    "mlp_bias": (True, 3),
}


@pytest.mark.parametrize("key", SIZES)
def test_sizes_that_contradict_the_tensors(puna: Puna, tiny: Path, tmp_path: Path, key: str) -> None:
    """`show` refuses what `generate` refuses, before anything is loaded."""
    model = shutil.copytree(tiny, tmp_path / "m")
    base = json.loads((tiny / "config.json").read_text())
    for value in SIZES[key]:
        (model / "config.json").write_text(json.dumps(base | {key: value}))
        for arguments in (("show", "--no-probe"), ("generate", "-p", "x", "-n", "1")):
            refused(puna(arguments[0], str(model), *arguments[1:]), 3, str(model))


GGUF_SIZES = {
    "embedding_length": (0, 1, 2**31 - 1, 2**32 - 1),
    "feed_forward_length": (0, 1, 2**31 - 1),
    "block_count": (0, 1, 65, 2**31 - 1),
    "attention.head_count": (0, 1, 2**31 - 1),
    "attention.head_count_kv": (0, 1, 2**31 - 1),
    "rope.dimension_count": (0, 3, 2**31 - 1),
    "context_length": (0,),
    "rope.freq_base": (0.0, -1.0, float("nan"), float("inf")),
}


@pytest.mark.parametrize("family", GGUF_FAMILIES)
def test_sizes_that_contradict_the_tensors_of_a_gguf_file(puna: Puna, tmp_path: Path, family: str) -> None:
    config = tiny_config(family)
    path = write_gguf(tmp_path / "model.gguf", config, tiny_tensors(config))
    written = path.read_bytes()
    prefix = GGUF_ARCHITECTURE.get(family, family)
    for key, values in GGUF_SIZES.items():
        place = written.index(f"{prefix}.{key}".encode()) + len(prefix) + 1 + len(key)
        assert written[place : place + 4] in (b"\4\0\0\0", b"\6\0\0\0")  # uint32 or float32: no longer key
        for value in values:
            patch = struct.pack("<f" if isinstance(value, float) else "<I", value)
            path.write_bytes(written[: place + 4] + patch + written[place + 8 :])
            for arguments in (("show", "--no-probe"), ("generate", "-p", "x", "-n", "1")):
                refused(puna(arguments[0], str(path), *arguments[1:]), 3, "model.gguf")


def test_missing_tensors_name_the_file(puna: Puna, tiny: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny, tmp_path / "m")
    config = json.loads((tiny / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    message = f"{model / 'model.safetensors'}, 'layers.2.self_attn.q_proj.weight': is missing"
    refused(puna("generate", str(model), "-p", "x"), 3, message)


def test_interrupt_while_text_is_made(tiny: Path) -> None:
    with process("generate", str(tiny), "-p", "Hello", "--ignore-eos") as child:
        assert child.stdout is not None
        assert child.stdout.read(20)
        begin = time.perf_counter()
        child.send_signal(signal.SIGINT)
        _out, err = child.communicate(timeout=30)
    assert child.returncode == 130 and b"Traceback" not in err and b"error" not in err
    assert time.perf_counter() - begin < 5


def test_reader_that_goes_away_before_the_json(tiny: Path) -> None:
    with process("generate", str(tiny), "-p", "Hello", "-n", "300", "--ignore-eos", "--json") as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        err = child.stderr.read()
    assert (child.returncode, err) == (141, b"")
