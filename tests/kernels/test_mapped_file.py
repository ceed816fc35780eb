"""Mapped files: zero copies, and files that are cut while they are mapped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from puna import _native

PAGE = os.sysconf("SC_PAGESIZE")


def make(path: Path, pages: int = 8) -> Path:
    path.write_bytes(b"\x01" * (pages * PAGE - 5))
    return path


def test_bytes_are_the_files(tmp_path: Path) -> None:
    content = bytes(range(256)) * 40
    (tmp_path / "a b\u00e9.bin").write_bytes(content)
    mapped = _native.MappedFile(tmp_path / "a b\u00e9.bin")
    assert mapped.size == len(content)
    assert mapped.path == str(tmp_path / "a b\u00e9.bin")
    assert bytes(mapped.data) == content
    assert bytes(memoryview(mapped)) == content
    assert mapped.data.readonly
    assert not mapped.damaged


def test_views_keep_the_mapping(tmp_path: Path) -> None:
    array = np.frombuffer(_native.MappedFile(make(tmp_path / "f")).data, np.uint8)
    assert array.sum() == 8 * PAGE - 5
    view = array[PAGE:]
    del array
    assert view.sum() == 7 * PAGE - 5


def test_a_file_that_is_cut_reads_as_zeros_and_is_damaged(tmp_path: Path) -> None:
    path = make(tmp_path / "f")
    mapped, other = _native.MappedFile(path), _native.MappedFile(make(tmp_path / "g"))
    array = np.frombuffer(mapped.data, np.uint8)
    os.truncate(path, 2 * PAGE)
    assert array[: 2 * PAGE].sum() == 2 * PAGE
    assert not mapped.damaged  # nothing that is gone was read yet
    assert array[5 * PAGE] == 0
    assert mapped.damaged
    assert array.sum() == 2 * PAGE
    assert not other.damaged
    assert np.frombuffer(other.data, np.uint8).sum() == 8 * PAGE - 5


def test_a_cut_file_is_noticed_by_the_worker_threads(tmp_path: Path) -> None:
    rows, cols = 256, 1024
    path = tmp_path / "weights"
    path.write_bytes(np.ones((rows, cols), np.float32).tobytes())
    mapped = _native.MappedFile(path)
    os.truncate(path, rows * cols * 2)
    packed = _native.PackedMatrix("F32", mapped.data, rows, cols, threads=4)
    assert mapped.damaged
    sums = packed.rows_f32(np.array([0, rows - 1])).sum(axis=1)
    np.testing.assert_array_equal(sums, [cols, 0])


def test_pages_that_are_let_go_come_back(tmp_path: Path) -> None:
    mapped = _native.MappedFile(make(tmp_path / "f"))
    array = np.frombuffer(mapped.data, np.uint8)
    assert array.sum() == 8 * PAGE - 5
    mapped.release()
    assert array.sum() == 8 * PAGE - 5
    assert not mapped.damaged


def test_what_cannot_be_mapped(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        _native.MappedFile(tmp_path / "none")
    assert caught.value.filename == str(tmp_path / "none")
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty is empty"):
        _native.MappedFile(tmp_path / "empty")
    with pytest.raises(ValueError, match="is not a regular file"):
        _native.MappedFile(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is not a regular file"):
        _native.MappedFile(tmp_path / "pipe")
    with pytest.raises(TypeError):
        _native.MappedFile(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="null"):
        _native.MappedFile("a\0b")


OTHER_FAULT = """
import ctypes, faulthandler, mmap, os, sys, tempfile
from puna import _native

ours = tempfile.NamedTemporaryFile()
ours.write(b"1" * 4 * mmap.PAGESIZE); ours.flush()
if sys.argv[1] == "after":
    mapped = _native.MappedFile(ours.name)
faulthandler.enable()
if sys.argv[1] == "before":
    mapped = _native.MappedFile(ours.name)
theirs = tempfile.NamedTemporaryFile()
theirs.write(b"1" * 4 * mmap.PAGESIZE); theirs.flush()
view = mmap.mmap(theirs.fileno(), 4 * mmap.PAGESIZE, access=mmap.ACCESS_READ)
os.truncate(theirs.name, mmap.PAGESIZE)
print("reading", flush=True)
view[3 * mmap.PAGESIZE]
"""


@pytest.mark.parametrize("order", ["before", "after"])
def test_faults_of_others_reach_the_handler_that_was_there(order: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OTHER_FAULT, order], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "reading\n"
    assert "Fatal Python error: Bus error" in done.stderr
    assert done.returncode == -signal.SIGBUS
