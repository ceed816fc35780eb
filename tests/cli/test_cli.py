"""The command line: what goes to which stream, JSON by its schemas, exit statuses, and how fast it starts."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from puna import __version__
from puna.entrypoints.cli import _COMMANDS, run
from support.tiny_model import write_tiny_model

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
Puna = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def puna(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Puna:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def call(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = run(arguments)
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out, captured.err

    return call


def process(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "puna.entrypoints.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def checked(command: str, text: str) -> Any:
    """The one object in `text`, after it was held against the command's schema."""
    value = json.loads(text)
    assert text.count("\n") == 1
    jsonschema.validate(value, json.loads((SCHEMAS / f"{command}.json").read_text()))
    return value


def test_schemas_are_schemas_and_every_command_that_answers_has_one() -> None:
    for path in SCHEMAS.glob("*.json"):
        jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text()))
    without = {"serve"}  # describes its answers in an OpenAPI document
    assert {path.stem for path in SCHEMAS.glob("*.json")} == (set(_COMMANDS) - without) | {"bench-serve"}


def time_of_children() -> float:
    """Processor time, which other processes do not lengthen as they do a start."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_version_starts_at_once_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from puna.entrypoints.cli import run; run(['--version']); run(['--help']); "
        "heavy = {'numpy', 'rich', 'tokenizers', 'jinja2', 'huggingface_hub', 'ml_dtypes', 'puna._native'}; "
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    durations: list[float] = []
    while len(durations) < 10 and min(durations, default=1.0) >= 0.3:  # a busy machine gets more tries
        begin = time_of_children()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        durations.append(time_of_children() - begin)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"puna {__version__}\n")
    assert min(durations) < 0.3, durations


def test_help_lists_every_command(puna: Puna) -> None:
    status, out, err = puna("--help")
    assert (status, err) == (0, "")
    assert all(f"  {name} " in out for name in _COMMANDS)


@pytest.mark.parametrize("command", sorted(_COMMANDS))
def test_help_of_a_command(puna: Puna, command: str) -> None:
    status, out, _err = puna(command, "--help")
    assert status == 0 and out.startswith(f"Usage: puna {command} [OPTIONS]")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nonsense"], 2, "no command 'nonsense'; there is: generate, chat, serve, batch,"),
        (["generate", "smollm2"], 2, "Missing option '-p'"),
        (["generate", "smollm2", "-p", "x", "--threads", "0"], 2, "--threads"),
        (["generate", "./nothing", "-p", "x"], 2, "no such file or directory"),
        (["show", "./nothing"], 2, "no such file or directory"),
        (["tokenize", "./nothing", "x"], 2, "no such file or directory"),
        (["rm", "smollm2"], 2, "in no cache"),
    ],
)
def test_wrong_use(puna: Puna, arguments: list[str], status: int, message: str) -> None:
    got, out, err = puna(*arguments)
    assert (got, out) == (status, "")
    assert message in err


def test_generate_streams_text_and_nothing_else(puna: Puna, tiny: str) -> None:
    status, out, err = puna("generate", tiny, "-p", "Hello", "-n", "5")
    assert status == 0 and out.endswith("\n") and len(out) > 1
    assert "tokens/s" in err and "greedy" in err
    quiet = puna("generate", tiny, "-p", "Hello", "-n", "5", "--quiet")
    assert quiet == (0, out, "")


def test_generate_json(puna: Puna, tiny: str) -> None:
    status, out, err = puna("generate", tiny, "-p", "Hello", "-n", "6", "--seed", "5", "--temperature", "1", "--json")
    value = checked("generate", out)
    assert (status, err) == (0, "")
    assert value["usage"] == {
        "prompt_tokens": len(value["prompt_token_ids"]),
        "completion_tokens": len(value["token_ids"]),
        "total_tokens": len(value["prompt_token_ids"]) + len(value["token_ids"]),
        "cached_tokens": 0,
    }
    assert (value["finish_reason"], value["seed"], len(value["token_ids"])) == ("length", 5, 6)


def ids(puna: Puna, *arguments: str) -> list[int]:
    status, out, err = puna("generate", *arguments, "--json")
    assert status == 0, err
    return list(json.loads(out)["token_ids"])


def test_seed_threads_and_chunks_do_not_matter_to_the_text(puna: Puna, tiny: str) -> None:
    sampled = [tiny, "-p", "Hello there " * 20, "-n", "12", "--top-p", "0.9", "--seed", "3"]
    assert ids(puna, *sampled) == ids(puna, *sampled) == ids(puna, *sampled, "--threads", "1")
    assert ids(puna, *sampled) != ids(puna, *sampled[:-1], "4")
    greedy = [tiny, "-p", "Hello", "-n", "12"]
    assert ids(puna, *greedy) == ids(puna, *greedy, "--seed", "9") == ids(puna, *greedy, "--threads", "2")


def test_chat_and_plain_prompts(puna: Puna, tiny: str, tmp_path: Path) -> None:
    def prompt(*arguments: str) -> list[int]:
        status, out, err = puna("generate", tiny, "-p", "Hi", "-n", "1", "--json", *arguments)
        assert status == 0, err
        return list(json.loads(out)["prompt_token_ids"])

    chat = json.loads(puna("tokenize", tiny, "--chat", "Hi", "--json")[1])["ids"]
    plain = json.loads(puna("tokenize", tiny, "Hi", "--json")[1])["ids"]
    assert prompt() == prompt("--chat") == chat != plain
    assert prompt("--no-chat") == plain
    assert len(prompt("--system", "Be brief.")) > len(chat)
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
    assert prompt("--chat-template", str(tmp_path / "own.jinja")) == plain


def test_model_without_template(puna: Puna, tmp_path: Path) -> None:
    plain = str(write_tiny_model(tmp_path / "m", template=None))
    assert puna("generate", plain, "-p", "Hi", "-n", "1")[0] == 0
    status, _out, err = puna("generate", plain, "-p", "Hi", "--chat")
    assert status == 3 and "chat template" in err
    status, _out, err = puna("generate", plain, "-p", "Hi", "--system", "x")
    assert status == 2 and "system message" in err


def test_prompt_from_standard_input(puna: Puna, tiny: str) -> None:
    piped = puna("tokenize", tiny, "-", "--json", stdin="Grüße".encode())
    assert piped == puna("tokenize", tiny, "Grüße", "--json")
    status, out, _err = puna("generate", tiny, "-p", "-", "-n", "2", "--json", stdin=b"Hello")
    assert status == 0 and json.loads(out)["text"] is not None
    status, _out, err = puna("generate", tiny, "-p", "-", stdin=b"\xff")
    assert status == 2 and "not UTF-8 (byte 0)" in err


def test_stop_strings_end_the_text_before_them(puna: Puna, tiny: str) -> None:
    arguments = [tiny, "-p", "Hello", "-n", "40", "--temperature", "1", "--seed", "1"]
    whole = json.loads(puna("generate", *arguments, "--json")[1])
    stop = whole["text"][5:8]
    cut = json.loads(puna("generate", *arguments, "--stop", stop, "--json")[1])
    assert cut["text"] == whole["text"][: whole["text"].index(stop)]
    assert cut["finish_reason"] == "stop"
    assert cut["token_ids"] == whole["token_ids"][: len(cut["token_ids"])]
    streamed = puna("generate", *arguments, "--stop", stop, "--quiet")[1]
    assert streamed == cut["text"] + "\n"


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        (["--temperature", "3"], "temperature"),
        (["--top-p", "2"], "top_p"),
        (["--top-k", "-2"], "top_k"),
        (["--min-p", "nan"], "min_p"),
        (["--seed", "-1"], "seed"),
        (["--max-length", "300"], "max_length"),
        (["--max-length", "3"], "prompt"),
        (["--chat-template", "/nonexistent"], "chat_template"),
    ],
)
def test_values_out_of_range_are_named(puna: Puna, tiny: str, arguments: list[str], param: str) -> None:
    status, out, err = puna("generate", tiny, "-p", "Hello", *arguments)
    assert (status, out) == (2, "") and param in err


def test_prompt_that_does_not_fit_says_by_how_much(puna: Puna, tiny: str) -> None:
    status, _out, err = puna("generate", tiny, "-p", "x " * 400)
    assert status == 2 and "more than the context of 256 tokens leaves room for" in err


def test_text_ends_with_the_context(puna: Puna, tiny: str) -> None:
    value = json.loads(puna("generate", tiny, "-p", "Hello", "--max-length", "40", "--ignore-eos", "--json")[1])
    assert (value["usage"]["total_tokens"], value["finish_reason"]) == (40, "length")


def test_generation_config_states_defaults_and_options_win(puna: Puna, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m")
    arguments = [str(model), "-p", "Hello", "-n", "12"]
    greedy = ids(puna, *arguments)
    (model / "generation_config.json").write_text('{"do_sample": true, "temperature": 1.5, "eos_token_id": [2]}')
    assert ids(puna, *arguments, "--seed", "1") != greedy
    assert ids(puna, *arguments, "--temperature", "0") == greedy


def test_damaged_model_is_status_3(puna: Puna, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    status, out, err = puna("generate", str(model), "-p", "x")
    assert (status, out) == (3, "") and "model.safetensors" in err


def test_unknown_architecture_is_status_3(puna: Puna, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m", architectures=["NopeForCausalLM"], model_type="nope")
    status, out, err = puna("show", str(model))
    assert (status, out) == (3, "") and "NopeForCausalLM" in err


def test_tokenize(puna: Puna, tiny: str) -> None:
    status, out, err = puna("tokenize", tiny, "Hello, world!", "--json")
    value = checked("tokenize", out)
    assert (status, err) == (0, "") and len(value["ids"]) == len(value["tokens"]) > 0
    lines = puna("tokenize", tiny, "Hello, world!")[1].splitlines()
    assert [int(line.split("\t")[0]) for line in lines] == value["ids"]


def test_show(puna: Puna, tiny: str) -> None:
    status, out, err = puna("show", tiny, "--json", "--no-probe")
    value = checked("show", out)
    assert (status, err) == (0, "")
    knobs = {knob["name"]: (knob["value"], knob["source"]) for knob in value["knobs"]}
    assert knobs["hidden_size"] == (64, "config.json")
    assert knobs["max_seq_len"] == (256, "config.json: max_position_embeddings")
    assert knobs["embedding_multiplier"] == (1.0, "default")
    assert knobs["tie_word_embeddings"] == (False, "config.json")
    classes = {item["tensor_class"]: item for item in value["encodings"]}
    assert set(classes) == {"norms", "embedding", "attention", "mlp", "output"}
    assert classes["mlp"]["tensors"] == 6 and classes["mlp"]["size_bytes"] == 6 * 64 * 96 * 4
    assert value["memory"]["kv_cache"] == 256 * 2 * 2 * 32 * 2
    text = puna("show", tiny, "--no-probe")[1]
    assert "LlamaForCausalLM" in text and "max_position_embeddings" in text


def test_show_estimates_from_a_probe(puna: Puna, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"read_gbps": 10.0, "f32_gflops": 100.0, "int8_gops": 400.0}
    monkeypatch.setattr("puna._native.measure_limits", lambda seconds: limits)
    value = checked("show", puna("show", tiny, "--json")[1])
    classes = {item["tensor_class"]: item for item in value["encodings"]}
    read = sum(item["size_bytes"] for name, item in classes.items() if name != "embedding")
    assert value["speed"]["generation_tokens_per_s"] == pytest.approx(10e9 / read, rel=1e-3)
    products = classes["attention"]["elements"] + classes["mlp"]["elements"]
    assert value["speed"]["prompt_tokens_per_s"] == pytest.approx(100e9 / (2 * products), rel=1e-3)


def test_doctor(puna: Puna) -> None:
    status, out, err = puna("doctor", "--json", "--no-probe")
    value = checked("doctor", out)
    assert (status, err) == (0, "")
    assert value["variants"]["used"] in value["variants"]["runnable"]
    assert 1 <= value["cpu"]["threads"] <= value["cpu"]["affinity_cores"]
    assert value["memory"]["available_bytes"] <= value["memory"]["total_bytes"]
    assert value["cpu"]["model"] in puna("doctor", "--no-probe")[1]


def test_list_when_there_is_nothing(puna: Puna) -> None:
    status, out, err = puna("list")
    assert (status, out) == (0, "") and "puna pull smollm2" in err
    assert checked("list", puna("list", "--json")[1]) == {"models": []}


def test_internal_fault_is_a_sentence(puna: Puna, monkeypatch: pytest.MonkeyPatch, tiny: str) -> None:
    def broken(*_arguments: object, **_options: object) -> None:
        raise ZeroDivisionError("x")

    monkeypatch.setattr("puna.entrypoints.model_header.find_model", broken)
    status, _out, err = puna("tokenize", tiny, "x")
    assert status == 70 and "internal fault, ZeroDivisionError: x" in err


def wait_until_it_waits(pid: int) -> None:
    """Until a process has used processor time, and then none for a while: it has started, and waits for its input."""
    before, deadline = 0, time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.5)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used, is_asleep = int(fields[11]) + int(fields[12]), fields[0] == "S"
        if is_asleep and used == before > 0:
            return
        before = used
    pytest.fail("it never waits")


def test_interrupt_is_status_130(tiny: str) -> None:
    with process("generate", tiny, "-p", "-", stdin=subprocess.PIPE) as child:
        wait_until_it_waits(child.pid)
        child.send_signal(signal.SIGINT)
        _out, err = child.communicate(timeout=20)
    assert child.returncode == 130 and b"Traceback" not in err


def test_broken_pipe_is_quiet(tiny: str) -> None:
    with process("generate", tiny, "-p", "Hello", "-n", "200", "--ignore-eos", "--quiet") as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        err = child.stderr.read()
        status = child.wait(timeout=30)
    assert (status, err) == (141, b"")


def test_no_control_characters_reach_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from puna.entrypoints import console

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    console.write_text("a\x1b[31mb\tc\nd\x07\u009b")
    assert terminal.getvalue() == "a[31mb\tc\nd"


def test_colours_are_off_in_pipes_and_with_no_color(puna: Puna, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    for arguments in (["show", tiny, "--no-probe"], ["rm", "nothing"], ["doctor", "--no-probe"]):
        _status, out, err = puna(*arguments)
        assert "\x1b" not in out + err
    assert os.environ["NO_COLOR"] == "1"
