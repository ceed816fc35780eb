"""Load curves of `puna serve` and of llama.cpp's server, in turn, on the same file.

    python benchmarks/versus_server.py

Both servers run with the model loaded, and one of them is asked at a time: by one client at once, by two, and so on
until more clients get no more tokens. `puna bench serve` sends the loads and measures what clients see.
llama-cpp-python's server answers one request after the other; the others wait. Prints a table; docs/performance.md has
one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from environments import llamacpp_server_python
from machine import Bystanders, machine_name
from puna import _native
from puna.models import DEFAULT_MODEL, find_model

CLIENTS: Final = (1, 2, 4, 8, 16, 32)
INPUT_LEN: Final = 128
OUTPUT_LEN: Final = 64
_START_S: Final = 120.0
_PUNA: Final = str(Path(sys.executable).with_name("puna"))


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(command: Sequence[object], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers on a port; ended at the end.

    Raises:
        RuntimeError: It does not answer within two minutes.
    """
    arguments = [str(part) for part in command]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        begin = time.monotonic()
        while not _answers(port):
            if process.poll() is not None or time.monotonic() - begin > _START_S:
                raise RuntimeError(f"no answer from {' '.join(arguments)}")
            time.sleep(0.2)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def load(port: int, clients: int, seed: int) -> dict[str, Any]:
    """What `puna bench serve` reports of so many clients at once."""
    command = [
        _PUNA, "bench", "serve", "--base-url", f"http://127.0.0.1:{port}/v1", "--max-concurrency", clients,
        "--num-prompts", max(8, 2 * clients), "--random-input-len", INPUT_LEN, "--random-output-len", OUTPUT_LEN,
        "--seed", seed, "--format", "json",
    ]  # fmt: skip
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def row(clients: int, reports: Sequence[Sequence[dict[str, Any]]], others: float) -> str:
    """A line of the table: both sides' medians, and the median of neighbours' ratios."""

    def medians(value: Callable[[dict[str, Any]], float], digits: int) -> str:
        return " · ".join(f"{statistics.median(map(value, side)):,.{digits}f}" for side in reports)

    pairs = zip(*reports, strict=True)
    ratio = statistics.median(ours["output_tokens_per_s"] / theirs["output_tokens_per_s"] for ours, theirs in pairs)
    cells = [
        str(clients),
        medians(lambda report: report["requests_per_s"], 2),
        medians(lambda report: report["output_tokens_per_s"], 1),
        f"{ratio:.2f}",
        medians(lambda report: report["ttft_ms"]["p50"], 0),
        medians(lambda report: report["tpot_ms"]["p50"], 1),
        f"{others:.0%}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a GGUF file, or a name")
    parser.add_argument("--turns", type=int, default=3, help="of both sides, for each number of clients")
    options = parser.parse_args()
    path, threads = find_model(options.model).path, _native.cpu_info()["default_threads"]
    ports = free_port(), free_port()
    ours = [_PUNA, "serve", path, "--port", ports[0], "--max-model-len", 1024]
    theirs = [
        llamacpp_server_python("native"), "-m", "llama_cpp.server", "--model", path, "--port", ports[1],
        "--n_ctx", 1024, "--n_threads", threads, "--n_threads_batch", threads, "--interrupt_requests", False,
    ]  # fmt: skip
    print(f"{options.model}, {threads} threads of {machine_name()}")
    print(f"prompts of {INPUT_LEN} words, {OUTPUT_LEN} tokens, medians of {options.turns} turns: Puna · llama.cpp\n")
    print("| clients | requests/s | tokens/s | ratio | first token, ms | per token, ms | others had |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with serving(ours, ports[0]) as first, serving(theirs, ports[1]) as second:
        others = Bystanders(os.getpid(), first.pid, second.pid)
        for clients in CLIENTS:
            others.share()
            turns = [[load(port, clients, seed) for port in ports] for seed in range(options.turns)]
            print(row(clients, list(zip(*turns, strict=True)), others.share()), flush=True)


if __name__ == "__main__":
    main()
