"""`puna chat`: what is said stays in the conversation, commands do what they say, and Ctrl-C ends an answer only."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from puna import LLM, SamplingParams
from puna.entrypoints.cli import run
from support.tiny_model import write_tiny_model

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "schemas" / "chat.json").read_text())
Chat = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny"), max_position_embeddings=1024))


@pytest.fixture
def chat(tiny: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Chat:
    def call(text: str | bytes, *arguments: str) -> tuple[int, str, str]:
        data = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        status = run(["chat", tiny, "-n", "6", *arguments])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return call


def saved(path: Path) -> list[tuple[str, str]]:
    value = json.loads(path.read_text())
    jsonschema.validate(value, SCHEMA)
    return [(message["role"], message["content"]) for message in value["messages"]]


def test_answers_are_those_of_the_whole_conversation(chat: Chat, tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    status, out, err = chat(f"Hello\nAnd now?\n/save {path}\n", "--system", "Be kind")
    messages = [{"role": "system", "content": "Be kind"}]
    texts = []
    with LLM(tiny) as llm:
        for text in ("Hello", "And now?"):
            messages.append({"role": "user", "content": text})
            texts.append(llm.chat(messages, SamplingParams(temperature=0, max_tokens=6))[0].outputs[0].text)
            messages.append({"role": "assistant", "content": texts[-1]})
    assert (status, out) == (0, "".join(text + "\n" for text in texts))
    assert saved(path) == [(message["role"], message["content"]) for message in messages]
    assert "5 messages" in err


def test_entries_of_several_lines(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    fenced = '"""first\n\nthird"""\n'
    assert chat(f'one\\\ntwo\\\nthree\n{fenced}"""\nalone\n"""\n /not a command\n\n/save {path}\n')[0] == 0
    asked = [content for role, content in saved(path) if role == "user"]
    assert asked == ["one\ntwo\nthree", "first\n\nthird", "alone", " /not a command"]


def test_a_last_line_that_goes_on_counts(chat: Chat) -> None:
    assert chat("Hello\\")[1] == chat("Hello\n")[1] != ""
    assert chat('"""Hello')[1] == chat("Hello\n")[1]


def test_commands(chat: Chat, tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("a.json", "b.json", "c.json"))
    entries = ["Hello", "More", "/undo", f"/save {first}", "/set temperature 1.5", "/set", "/regen", "/system Be kind"]
    entries += ["/system", f"/save {second}", "/clear", f"/save {third}", f"/load {first}", "/stats", "/help"]
    entries += ["/quit", "x"]
    status, out, err = chat("\n".join(entries) + "\n", "--seed", "5")
    assert status == 0
    assert [role for role, _ in saved(first)] == ["user", "assistant"]
    kept, changed = saved(first), saved(second)
    assert changed[0] == ("system", "Be kind") and changed[1] == kept[0] and changed[2] != kept[1]
    assert saved(third) == [("system", "Be kind")]
    assert out.count("\n") >= 3 and "temperature 1.5" in err
    assert "context: " in err and "3 answers" in err and "/regen" in err
    assert "\nBe kind\n" in f"\n{err}"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("/nonsense", "no command /nonsense"),
        ("/regen", "no answer yet"),
        ("/undo", "nothing to take back"),
        ("/save", "the name of a file"),
        ("/load /nothing/at/all", "No such file"),
        ("/set temperature 9", "temperature"),
        ("/set nonsense 9", "nonsense"),
        ("/set n 2", "one answer"),
        ("x " * 2000, "more than the context of 1024 tokens"),
    ],
)
def test_a_pipe_ends_with_the_first_error(chat: Chat, entry: str, message: str) -> None:
    status, out, err = chat(f"/set top_p 0.5\n{entry}\nHello\n")
    assert status in (1, 2) and out == "" and message in err and err.count("\n") == 1


def test_what_is_no_conversation_is_not_loaded(chat: Chat, tmp_path: Path) -> None:
    for content in ("{", "[]", '{"messages": [{"role": 3, "content": "x"}]}', '{"messages": 3}'):
        (tmp_path / "x.json").write_text(content)
        status, _out, err = chat(f"/load {tmp_path / 'x.json'}\n")
        assert status == 2 and "holds no conversation" in err
    assert chat(b"\xff\n")[0] == 2


def test_options_out_of_range_and_models_without_a_template(
    chat: Chat, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert chat("Hello\n", "--top-p", "3")[0] == 2
    plain = write_tiny_model(tmp_path / "m", template=None)
    assert run(["chat", str(plain)]) == 3
    assert "chat template" in capfd.readouterr().err


def test_following_turns_are_found_in_the_cache(chat: Chat) -> None:
    long = "Hello there, how are you? " * 8
    err = chat(f"{long}\nMore\n", "--verbose")[2]
    last = err.splitlines()[-1]
    read, cached = int(last.split(": ")[1].split()[0]), int(last.split("(")[1].split()[0])
    assert cached >= read // 2 and read - cached < 100


class Terminal:
    """A chat in a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        command = [sys.executable, "-m", "puna.entrypoints.cli", "chat", *arguments]
        environment = os.environ | {"TERM": "dumb", "PUNA_CACHE_LIMIT": "0"}
        self.child = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self.text = ""

    def wait_for(self, text: str) -> None:
        begin = len(self.text)
        self._wait_until(lambda: text in self.text[begin:])

    def wait_for_prompt(self) -> None:
        self._wait_until(lambda: self.text.endswith("> "))  # it may have come with what was waited for

    def wait_for_more(self, count: int) -> None:
        goal = len(self.text) + count
        self._wait_until(lambda: len(self.text) >= goal)

    def interrupt_prompt(self, text: str) -> None:
        """Ctrl-C until `text` comes: `input` sleeps on one that arrives between its prompt and its wait for keys."""
        begin = len(self.text)

        def is_answered() -> bool:
            return text in self.text[begin:]

        for _ in range(5):
            self.child.send_signal(signal.SIGINT)
            if self._reads_until(is_answered, 6):
                return
        raise AssertionError(self.text)

    def _wait_until(self, is_there: Callable[[], bool]) -> None:
        assert self._reads_until(is_there, 30), self.text

    def _reads_until(self, is_there: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not is_there():
            if time.monotonic() >= end:
                return False
            if select.select([self.master], [], [], 0.1)[0]:
                self.text += os.read(self.master, 65536).decode("utf-8", "replace")
        return True

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self.master)


def test_ctrl_c_ends_an_answer_and_ctrl_d_the_program(tmp_path: Path) -> None:
    tiny = write_tiny_model(tmp_path / "m", max_position_embeddings=1 << 20)
    with Terminal(str(tiny), "--ignore-eos", "--no-weight-cache", "--max-length", "200000") as terminal:
        terminal.wait_for("> ")
        terminal.type("/nonsense\n")
        terminal.wait_for("no command")
        terminal.type("Hello\n")
        terminal.wait_for_more(100)  # the answer has begun
        terminal.child.send_signal(signal.SIGINT)
        terminal.type("/stats\n")
        terminal.wait_for("1 answers")
        terminal.type(f"/save {tmp_path / 'c.json'}\n")
        terminal.wait_for("2 messages are in")
        terminal.wait_for_prompt()
        terminal.interrupt_prompt("/quit ends")
        terminal.wait_for_prompt()
        terminal.type("\x04")
        assert terminal.child.wait(timeout=30) == 0
    assert [role for role, _ in saved(tmp_path / "c.json")] == ["user", "assistant"]
