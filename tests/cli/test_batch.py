"""`puna batch`: bodies of the OpenAI interface, and a file of results that survives whatever happens to its writer."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from puna import LLM, SamplingParams
from puna.entrypoints.cli import run
from puna.entrypoints.openai.batch import ResultFile, read_line, result_line, scan
from puna.errors import InvalidRequestError
from support.tiny_model import write_tiny_model

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "schemas" / "batch.json").read_text())
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
HELLO = [{"role": "user", "content": "Hello"}]
LIMITS = {"max_tokens": 2, "max_completion_tokens": 3}  # two names of one thing


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def llm(tiny: str) -> LLM:
    return LLM(tiny)


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def results(path: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        jsonschema.validate(line, SCHEMA)
    names = [line["custom_id"] for line in lines]
    assert len(set(names)) == len(names)
    return {line["custom_id"]: line["response"] for line in lines}


def answer(tmp_path: Path, tiny: str, lines: list[Any], *options: str) -> tuple[int, dict[str, Any]]:
    source, output = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    status = run(["batch", str(source), "-o", str(output), "-m", tiny, *options])
    return status, results(output)


def call(url: str, name: str = "a", **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def test_chat_completion(tmp_path: Path, tiny: str, llm: LLM) -> None:
    body = {"messages": HELLO, "max_completion_tokens": 5, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    status, found = answer(tmp_path, tiny, [call(CHAT, **body)])
    (expected,) = llm.chat(HELLO, SamplingParams(temperature=0, max_tokens=5, logprobs=2))
    made, value = expected.outputs[0], found["a"]["body"]
    (choice,) = value["choices"]
    assert (status, found["a"]["status_code"], value["object"]) == (0, 200, "chat.completion")
    assert choice["message"] == {"role": "assistant", "content": made.text, "refusal": None}
    assert (choice["index"], choice["finish_reason"]) == (0, "length")
    assert value["usage"]["prompt_tokens"] == len(expected.prompt_token_ids)
    assert value["usage"]["completion_tokens"] == 5
    assert made.logprobs is not None
    for token, position, entry in zip(made.token_ids, made.logprobs, choice["logprobs"]["content"], strict=True):
        assert entry["logprob"] == position[token].logprob
        assert bytes(entry["bytes"]) == llm.tokenizer.token_bytes(token)
        likeliest = sorted((value.logprob for value in position.values() if value.rank <= 2), reverse=True)
        assert [one["logprob"] for one in entry["top_logprobs"]] == likeliest


def test_completions_of_several_prompts(tmp_path: Path, tiny: str, llm: LLM) -> None:
    body = {"prompt": ["Hello", "You are"], "n": 2, "seed": 4, "echo": True, "logprobs": 1, "max_tokens": 3}
    _, found = answer(tmp_path, tiny, [call(COMPLETIONS, **body)])
    expected = llm.generate(["Hello", "You are"], SamplingParams(n=2, seed=4, max_tokens=3))
    choices = found["a"]["body"]["choices"]
    texts = [str(output.prompt) + made.text for output in expected for made in output.outputs]
    assert [choice["text"] for choice in choices] == texts
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    logprobs = choices[2]["logprobs"]
    count = len(expected[1].prompt_token_ids) + 3
    assert [len(logprobs[name]) for name in logprobs] == [count] * 4
    assert logprobs["token_logprobs"][0] is None and logprobs["text_offset"][0] == 0
    assert found["a"]["body"]["usage"]["completion_tokens"] == 12


def test_embeddings(tmp_path: Path, tiny: str, llm: LLM) -> None:
    lines = [
        call(EMBEDDINGS, input=["a cat", "a dog"]),
        call(EMBEDDINGS, "b", input=llm.tokenize("a dog"), encoding_format="base64", pooling="last"),
        call(EMBEDDINGS, "c", input="a dog", dimensions=7),
    ]
    status, found = answer(tmp_path, tiny, lines)
    vectors = [entry["embedding"] for entry in found["a"]["body"]["data"]]
    assert np.array_equal(np.array(vectors, np.float32), llm.embed(["a cat", "a dog"]))
    data = base64.b64decode(found["b"]["body"]["data"][0]["embedding"])
    assert np.array_equal(np.frombuffer(data, "<f4"), llm.embed("a dog", pooling="last")[0])
    assert found["c"]["body"]["error"]["param"] == "dimensions" and status == 1


def test_plain_lines_and_options_as_defaults(tmp_path: Path, tiny: str, llm: LLM) -> None:
    lines = [{"prompt": "Hello"}, "", {"prompt": "Hello", "max_tokens": 2}, {"messages": HELLO}]
    status, found = answer(tmp_path, tiny, lines, "--max-tokens", "4", "--temperature", "0")
    assert status == 0 and sorted(found) == ["line-1", "line-3", "line-4"]
    (expected,) = llm.generate("Hello", SamplingParams(temperature=0, max_tokens=4))
    assert found["line-1"]["body"]["choices"][0]["text"] == expected.outputs[0].text
    assert found["line-3"]["body"]["usage"]["completion_tokens"] == 2
    assert found["line-4"]["body"]["object"] == "chat.completion"


def test_a_completion_that_states_no_limit_has_sixteen_tokens(tmp_path: Path, tiny: str) -> None:
    _, found = answer(tmp_path, tiny, [{"prompt": "Hello", "ignore_eos": True}])
    assert found["line-1"]["body"]["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize(
    ("line", "status", "param", "code"),
    [
        ("nonsense", 400, None, "invalid_value"),
        ("[1]", 400, None, "invalid_value"),
        ({"custom_id": 3, "prompt": "x"}, 400, "custom_id", "invalid_value"),
        ({"prompt": "x", "messages": HELLO}, 400, "body", "invalid_value"),
        ({"url": COMPLETIONS, "method": "GET", "body": {"prompt": "x"}}, 400, "method", "invalid_value"),
        ({"url": "/v1/images", "body": {}}, 400, "url", "invalid_value"),
        ({"url": COMPLETIONS, "body": 3}, 400, "body", "invalid_value"),
        ({"url": COMPLETIONS, "body": {}, "more": 1}, 400, "more", "invalid_value"),
        ({"prompt": "x", "temperature": 9}, 400, "temperature", "invalid_value"),
        ({"prompt": "x", "nonsense": 9}, 400, "nonsense", "invalid_value"),
        ({"prompt": "x", "stream": True}, 400, "stream", "invalid_value"),
        ({"prompt": []}, 400, "prompt", "invalid_value"),
        ({"prompt": ["x", 3]}, 400, "prompt", "invalid_value"),
        ({"prompt": "x", "logit_bias": {"x": 1}}, 400, "logit_bias", "invalid_value"),
        ({"prompt": "x", "logprobs": True}, 400, "logprobs", "invalid_value"),
        ({"prompt": "x " * 400}, 400, "prompt", "context_length_exceeded"),
        ({"prompt": "x", "model": "another"}, 404, "model", "model_not_found"),
        ({"messages": [{"content": "x"}]}, 400, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages", "invalid_value"),
        ({"messages": HELLO, "tools": [{"type": "function"}]}, 400, "tools[0].function", "invalid_value"),
        ({"messages": HELLO, "top_logprobs": 3}, 400, "top_logprobs", "invalid_value"),
        ({"messages": HELLO, **LIMITS}, 400, "max_completion_tokens", "invalid_value"),
        ({"input": "x", "encoding_format": "x"}, 400, "encoding_format", "invalid_value"),
        ({"input": "x", "pooling": "x"}, 400, "pooling", "invalid_value"),
    ],
)
def test_a_bad_line_fails_alone(
    tmp_path: Path, tiny: str, line: Any, status: int, param: str | None, code: str
) -> None:
    got, found = answer(tmp_path, tiny, [line, {"prompt": "Hello", "max_tokens": 1}])
    error = found["line-1"]["body"]["error"]
    assert (got, found["line-1"]["status_code"], error["param"], error["code"]) == (1, status, param, code)
    assert found["line-2"]["status_code"] == 200


def test_neutral_fields_labels_and_other_names_are_served(tmp_path: Path, tiny: str) -> None:
    message = {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": " kind"}]}
    body = {"messages": [message, *HELLO], "stream": False, "user": "me", "model": "gpt", "max_tokens": 1}
    body |= {"response_format": {"type": "text"}, "logit_bias": {"5": 1}}
    status, found = answer(tmp_path, tiny, [call(CHAT, **body)], "--served-model-name", "gpt")
    assert status == 0 and found["a"]["body"]["usage"]["completion_tokens"] == 1


def test_a_model_without_a_template_refuses_chat(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m", template=None)
    status, found = answer(tmp_path, str(model), [{"messages": HELLO}])
    assert (status, found["line-1"]["status_code"]) == (1, 400)
    assert found["line-1"]["body"]["error"]["code"] == "unsupported_by_model"


def test_seeds_depend_on_the_line_and_not_on_its_company(tmp_path: Path, tiny: str) -> None:
    lines = [call(COMPLETIONS, str(i), prompt="Hello", max_tokens=6) for i in range(6)]

    def texts(name: str, some: list[Any], seed: str) -> dict[str, str]:
        directory = tmp_path / name
        directory.mkdir()
        found = answer(directory, tiny, some, "--seed", seed)[1]
        return {key: value["body"]["choices"][0]["text"] for key, value in found.items()}

    everything = texts("a", lines, "1")
    assert len(set(everything.values())) > 1
    assert texts("b", lines[3:], "1") == {name: everything[name] for name in ("3", "4", "5")}
    assert texts("c", lines, "2") != everything


def test_results_that_are_there_are_kept_and_a_cut_line_is_repaired(tmp_path: Path, tiny: str) -> None:
    lines = [call(COMPLETIONS, str(i), prompt="Hello", max_tokens=2) for i in range(6)]
    answer(tmp_path, tiny, lines)
    output = tmp_path / "out.jsonl"
    before = output.read_bytes()
    for cut in (1, 10, len(before.splitlines()[-1]), len(before.splitlines()[-1]) + 1, len(before)):
        output.write_bytes(before[: len(before) - cut])
        kept = before[: before.rfind(b"\n", 0, len(before) - cut) + 1]
        assert run(["batch", str(tmp_path / "in.jsonl"), "-o", str(output), "-m", tiny, "-q"]) == 0
        assert output.read_bytes().startswith(kept)
        assert set(results(output)) == set("012345")


def test_everything_done_loads_no_model(tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [call(COMPLETIONS, prompt="Hello", max_tokens=2), "nonsense"]
    assert answer(tmp_path, tiny, lines)[0] == 1
    monkeypatch.setattr("puna.entrypoints.llm.load_model", None)
    assert run(["batch", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "-m", tiny]) == 1


def test_names_that_occur_twice_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": "x", "custom_id": "line-2"}, {"prompt": "x"}])
    assert run(["batch", str(source), "-o", str(tmp_path / "out.jsonl")]) == 2
    assert "'line-2' is on lines 1 and 2" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_the_model_is_the_one_that_lines_name(tmp_path: Path, tiny: str) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": "x", "model": tiny, "max_tokens": 1}])
    assert run(["batch", str(source), "-o", str(tmp_path / "out.jsonl")]) == 0
    assert results(tmp_path / "out.jsonl")["line-1"]["body"]["model"] == tiny


@pytest.mark.parametrize(
    "content",
    [
        b"some text",
        b"some text\n",
        b'{"id": "batch_req_1"}\n',
        json.dumps(result_line("other", {})).encode() + b"\n",
        2 * (json.dumps(result_line("line-1", {})).encode() + b"\n"),
    ],
)
def test_files_that_hold_something_else_are_left_alone(tmp_path: Path, content: bytes) -> None:
    source, output = write(tmp_path / "in.jsonl", [{"prompt": "x"}]), tmp_path / "out.jsonl"
    output.write_bytes(content)
    with pytest.raises(InvalidRequestError, match="name another file"):
        ResultFile(output, scan(source).custom_ids)
    assert output.read_bytes() == content


def test_two_writers_are_refused(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with ResultFile(output, {}), pytest.raises(InvalidRequestError, match="another process writes"):
        ResultFile(output, {})
    descriptor = os.open(output, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock ended with the writer
    os.close(descriptor)


def test_text_of_any_kind_fits_a_line(tmp_path: Path) -> None:
    body = {"text": "a\nb\u2028c\x00\ud800😀"}
    with ResultFile(tmp_path / "out.jsonl", {"a": 1}) as file:
        file.append(result_line("a", body))
    with ResultFile(tmp_path / "out.jsonl", {"a": 1}) as file:
        assert file.done == {"a"} and file.num_failed == 0


def test_lines_say_what_is_wrong_with_them() -> None:
    assert "line 7 is not JSON" in str(read_line(b"{", 7).error)
    assert read_line(b"[" * 100_000, 7).error is not None


@pytest.mark.slow
def test_killed_in_the_middle_nothing_is_lost_or_repeated(tmp_path: Path, tiny: str) -> None:
    count = 400
    lines = [call(COMPLETIONS, str(i), prompt=f"Hello {i}", max_tokens=40, ignore_eos=True) for i in range(count)]
    source, output = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    arguments = ["batch", str(source), "-o", str(output), "-m", tiny, "--seed", "1", "-q", "--no-weight-cache"]
    command = [sys.executable, "-m", "puna.entrypoints.cli", *arguments]
    seen = 0
    for signal_number in (signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen(command, stderr=subprocess.PIPE) as child:
            end = time.monotonic() + 30
            while child.poll() is None and time.monotonic() < end:
                written = output.read_bytes().count(b"\n") if output.exists() else 0
                if written > seen + 20:
                    child.send_signal(signal_number)
                    break
                time.sleep(0.005)
            child.communicate(timeout=30)
        assert child.returncode == (130 if signal_number == signal.SIGINT else -signal_number)
        data = output.read_bytes()
        assert data.count(b"\n") > seen
        seen = data.count(b"\n")
    assert seen < count
    begun = output.read_bytes()
    assert run(arguments) == 0
    assert output.read_bytes().startswith(begun[: begun.rfind(b"\n") + 1])
    found = results(output)
    assert set(found) == {str(i) for i in range(count)}
    other = tmp_path / "other.jsonl"
    assert run(["batch", str(source), "-o", str(other), *arguments[4:]]) == 0
    expected = results(other)
    for name, value in found.items():
        assert value["body"]["choices"] == expected[name]["body"]["choices"]
