"""`CompileProcess`: asks `compile_worker.py` whether a grammar can be compiled within bounds."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from puna.structured_output.errors import GrammarError

__all__ = ["CompileProcess"]

_SECONDS: Final = 1.0  # of the processor, for one grammar
_PATIENCE: Final = 30.0  # seconds by the clock, on a machine that is busy with other things
_MEMORY: Final = 2 << 30
_WORKER: Final = Path(__file__).with_name("compile_worker.py")


class CompileProcess:
    """A process that is started when it is first asked, and anew when a grammar ended it. Safe to use from threads.

    Args:
        size: Tokens of the vocabulary.
        control: Its control tokens: their texts by id; not empty.
        limits: What a grammar may take, as the engine names it.
    """

    def __init__(self, size: int, control: Mapping[int, str], limits: Mapping[str, Any]) -> None:
        self._settings = {
            "size": size,
            "control": {str(token): text for token, text in control.items()},
            "limits": dict(limits),
            "seconds": _SECONDS,
            "memory": _MEMORY,
        }
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Any = None

    def start(self) -> None:
        """Starts the process, if none runs; it gets ready by itself."""
        with self._lock:
            self._running()

    def problem(self, grammar: str) -> str:
        """What is wrong with a grammar; an empty text: nothing.

        Raises:
            GrammarError: It takes too long, or too much memory.
        """
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(grammar).encode() + b"\n")
                process.stdin.flush()
                answer = self._line(process)
                if answer == "ready":
                    answer = self._line(process)
            except (EOFError, TimeoutError, BrokenPipeError):
                self._end()
                self._process = None
                raise GrammarError(
                    f"it is too complex: it takes more than {_SECONDS:g} s or {_MEMORY >> 30} GiB to compile"
                ) from None
            return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            process = subprocess.Popen(
                [sys.executable, "-P", str(_WORKER), json.dumps(self._settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's interrupts are not for it
            )
            self._process = process
            self._end = weakref.finalize(self, _end, process)
        return self._process

    @staticmethod
    def _line(process: subprocess.Popen[bytes]) -> str:
        assert process.stdout is not None
        data = b""
        deadline = time.monotonic() + _PATIENCE
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not data.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                part = os.read(process.stdout.fileno(), 1 << 16)
                if not part:
                    raise EOFError
                data += part
        # The answer to a grammar may come in one piece with the first line.
        first, _, second = data.rstrip(b"\n").partition(b"\n")
        answer: str = json.loads(second or first)
        return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # of what was not written yet
                stream.close()
    process.wait()
