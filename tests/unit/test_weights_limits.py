"""Large hostile files: refused (or read) within five seconds and 500 MB, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support import weight_bytes as wb

MAX_SECONDS = 5.0
MAX_BYTES = 500 << 20

CHILD = """
import json, sys, time
from puna.graph.weights import load_weights
from puna.errors import UnsupportedModelError, WeightsError
def memory(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024
begin, before = time.perf_counter(), memory("VmRSS")
try:
    weights = load_weights(sys.argv[1])
    outcome = f"{sum(1 for _ in weights.items())} tensors"
    if sys.argv[1].endswith(".gguf"):
        for value in weights.metadata.values():
            if hasattr(value, "tolist"):
                value.tolist()
except (WeightsError, UnsupportedModelError) as error:
    outcome = str(error)
print(json.dumps([time.perf_counter() - begin, memory("VmHWM") - before, outcome]))
"""


def read_elsewhere(path: Path) -> tuple[float, int, str]:
    """Seconds, bytes of growth and outcome of opening a file in a fresh process."""
    child = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, f"signal or traceback: {child.returncode} {child.stderr}"
    seconds, growth, outcome = json.loads(child.stdout)
    return seconds, growth, outcome


def repeated(piece: bytes, total: int) -> bytes:
    """The piece again and again, `total` bytes at most."""
    return piece * (total // len(piece))


HEADER = 99_000_000
MB = 1_000_000


def many_tensors() -> bytes:
    """As many small tensors as are read, and one more."""
    entries = (b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range((1 << 17) + 1))
    return wb.safetensors(b"{" + b",".join(entries) + b"}")


def many_metadata_texts() -> bytes:
    """A header of nothing but short texts."""
    return wb.safetensors(b'{"__metadata__":{' + b",".join(b'"%d":""' % i for i in range(5 * MB)) + b"}}")


def many_keys() -> bytes:
    """More keys than are read."""
    return wb.gguf([wb.pair(f"{i}", wb.BOOL, b"\1") for i in range(200_000)])


def many_lists() -> bytes:
    """More lists in a list than are read."""
    return wb.gguf([wb.list_of("k", wb.LIST, 4 * MB, (struct.pack("<IQ", 0, 0)) * (4 * MB))])


def many_gguf_tensors() -> bytes:
    """More tensor descriptions than are read."""
    count = (1 << 17) + 1
    return wb.gguf([], [b"".join(wb.tensor(str(i), ()) for i in range(count))], num_tensors=count)


# Suffix; the file's bytes, or its first bytes and its size (the rest are zeros); what is said of it.
CASES: dict[str, tuple[str, Callable[[], bytes | tuple[bytes, int]], str]] = {
    "lists in lists": ("safetensors", lambda: wb.safetensors(repeated(b'{"a":', HEADER)), "is unknown"),
    "a list of empty lists": (
        "safetensors",
        lambda: wb.safetensors(b'{"a":{"shape":[' + repeated(b"[],", HEADER) + b"0]}}"),
        "a whole number is expected",
    ),
    "one long list": (
        "safetensors",
        lambda: wb.safetensors(b'{"a":{"shape":[' + repeated(b"0,", HEADER) + b"0]}}"),
        "more than 32",
    ),
    "one long name": ("safetensors", lambda: wb.safetensors(b'{"' + b"a" * HEADER + b'":1}'), "more than 4096"),
    "one long name of escapes": ("safetensors", lambda: wb.safetensors(b'{"' + b"\\n" * (HEADER // 2)), "more than"),
    "nothing but spaces": ("safetensors", lambda: wb.safetensors(b"{" + b" " * HEADER + b"}"), "0 tensors"),
    "too many tensors": ("safetensors", many_tensors, "more than 131072 tensors"),
    "millions of texts": ("safetensors", many_metadata_texts, "more than 131072 members"),
    "four million empty strings": (
        "gguf",
        lambda: (wb.gguf([wb.list_of("t", wb.STRING, 4 * MB, b"")]), 100 * MB),
        "0 tensors",
    ),
    "too many strings": (
        "gguf",
        lambda: (wb.gguf([wb.list_of(key, wb.STRING, 3 * MB, bytes(24 * MB)) for key in "ab"]), 100 * MB),
        "'b'.*more than 4194304 strings",
    ),
    "strings of a gigabyte": (
        "gguf",
        lambda: (wb.gguf([wb.list_of("t", wb.STRING, 100 * MB, b"")]), 900 * MB),
        "'t'.*list is said to have",
    ),
    "numbers of a gigabyte": (
        "gguf",
        lambda: (wb.gguf([wb.list_of("t", 0, 800 * MB, b"")]), 900 * MB),
        "'t'.*list is said to have",
    ),
    "too many keys": ("gguf", many_keys, "200000 metadata keys"),
    "too many lists": ("gguf", many_lists, "more than 65536 lists"),
    "too many gguf tensors": ("gguf", many_gguf_tensors, "131073 tensors"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_hostile_files_are_cheap(name: str, tmp_path: Path) -> None:
    suffix, build, message = CASES[name]
    path = tmp_path / f"model.{suffix}"
    built = build()
    begin, size = (built, len(built)) if isinstance(built, bytes) else built
    path.write_bytes(begin)
    os.truncate(path, size)
    seconds, growth, outcome = read_elsewhere(path)
    assert seconds < MAX_SECONDS
    assert growth < MAX_BYTES
    assert re.search(message, outcome), outcome


@pytest.mark.slow
def test_a_vocabulary_of_128k_opens_quickly(tmp_path: Path) -> None:
    from puna.graph.weights import GGUFWeights

    tokens = [wb.text(f"token{i}") for i in range(128_256)]
    merges = [wb.text(f"a{i} b{i}") for i in range(280_147)]
    pairs = [wb.list_of("tokens", wb.STRING, len(tokens), b"".join(tokens))]
    pairs.append(wb.list_of("merges", wb.STRING, len(merges), b"".join(merges)))
    path = tmp_path / "model.gguf"
    path.write_bytes(wb.gguf(pairs))
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        weights = GGUFWeights(path)
        best = min(best, time.perf_counter() - begin)
    assert weights.metadata["tokens"].tolist()[-1] == "token128255"
    assert best < 0.1
