"""A worker: a process with a model loaded, that is told what to do in lines of JSON and answers in lines of JSON.

Both sides of a comparison are such processes, each in an environment of its own, so that neither loads a model between
two measurements and neither computes while the other does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


class Worker:
    """The near end.

    Args:
        command: Program and arguments.
        environment: Its environment variables; None: those of this process.
    """

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=None if environment is None else dict(environment),
        )
        self.pid = self._process.pid
        self.greeting = self._read()

    def ask(self, action: str, **arguments: Any) -> dict[str, Any]:
        """Has something done and waits for the answer.

        Raises:
            RuntimeError: The worker died.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"action": action, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def serve(greeting: Mapping[str, Any], actions: Mapping[str, Callable[..., Mapping[str, Any]]]) -> None:
    """The far end: answers until its input ends.

    Args:
        greeting: What is said first.
        actions: What can be asked for.
    """
    _say(greeting)
    for line in sys.stdin:
        request = json.loads(line)
        _say(actions[request.pop("action")](**request))


def peak_bytes() -> int:
    """The most memory that this process had in use, mapped files included."""
    return _status_bytes("VmHWM")


def resident_bytes() -> int:
    """The memory that this process has in use now, mapped files included."""
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def _say(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
