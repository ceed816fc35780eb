"""What only a process of its own can tell: how soon a start leads to a token, and how much memory was used at most."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from puna.errors import PunaError

__all__ = ["peak_rss_bytes", "start_seconds"]

_STATUS: Final = Path("/proc/self/status")


def peak_rss_bytes() -> int:
    """The most memory that this process had in use, mapped files included, in bytes."""
    if _STATUS.exists():  # what getrusage says counts the process that this one was forked from, too
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def start_seconds(
    model: str, *, threads: int | None = None, kv_cache_dtype: str = "auto", revision: str | None = None
) -> float:
    """Seconds from the start of a process to the first token of its text.

    Args:
        model: A file, a directory, or a model's name.
        threads: Threads to use; None: all that may be used.
        kv_cache_dtype: Element type of cached keys and values.
        revision: Branch, tag or commit on the hub.

    Raises:
        PunaError: The process failed; the message is its own.
    """
    command = [sys.executable, "-m", "puna.entrypoints.cli", "generate", model]
    command += ["-p", "Hello", "-n", "1", "--ignore-eos", "--quiet", "--kv-cache-dtype", kv_cache_dtype]
    command += [] if threads is None else ["--threads", str(threads)]
    command += [] if revision is None else ["--revision", revision]
    with tempfile.TemporaryFile() as errors:
        begin = time.perf_counter()
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors) as process:
            assert process.stdout is not None
            process.stdout.read(1)  # nothing is written before the token
            seconds = time.perf_counter() - begin
            process.stdout.read()
        if process.returncode != 0:
            errors.seek(0)
            raise PunaError(
                errors.read().decode("utf-8", errors="replace").strip() or "the process that was timed died"
            )
    return seconds
