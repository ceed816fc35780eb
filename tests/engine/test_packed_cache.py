"""Packed weights on disk: the same bits, and nothing that goes wrong costs more than the packing."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from puna import _native
from puna.engine.packed_cache import PackedCache, PackedFile
from puna.engine.packed_cache import store as store_module
from puna.engine.packed_weights import PackedWeights, pack_weights
from puna.errors import WeightsError
from puna.graph.weights import WeightData, load_weights
from support.exact import same_bits

NAMES = ("a.weight", "b.weight", "norm.weight")
ROWS, COLS = 40, 96


def write_source(path: Path, seed: int = 0, names: tuple[str, ...] = NAMES) -> Path:
    random = np.random.default_rng(seed)
    tensors: dict[str, Any] = {
        names[0]: random.standard_normal((ROWS, COLS)).astype(ml_dtypes.bfloat16),
        names[1]: random.standard_normal((300, COLS)).astype(np.float32),
        names[2]: random.standard_normal(COLS).astype(ml_dtypes.bfloat16),
    }
    save_file(tensors, path)
    os.utime(path, ns=(10**18, 10**18))
    return path


def weights_of(path: Path) -> dict[str, WeightData]:
    return {name: place.data() for name, place in load_weights(path).items()}


def cache_in(directory: Path, limit: int = 1 << 30) -> PackedCache:
    return PackedCache(directory, limit, min_bytes=0)


def start(source: Path, cache: PackedCache | None, precision: str = "auto") -> PackedWeights:
    """What a process does that loads these weights, and ends."""
    packed = pack_weights(_native, weights_of(source), precision, 2, cache)
    if cache is not None:
        cache.wait()
    return packed


def assert_same(left: PackedWeights, right: PackedWeights) -> None:
    assert left.content_id == right.content_id
    assert left.matrices.keys() == right.matrices.keys()
    for name, matrix in left.matrices.items():
        assert bytes(memoryview(matrix)) == bytes(memoryview(right.matrices[name]))
        assert (matrix.format, matrix.partner) == (right.matrices[name].format, right.matrices[name].partner)
    for name, vector in left.vectors.items():
        assert same_bits(vector, right.vectors[name])


def names_in(directory: Path) -> list[str]:
    return sorted(path.name.rpartition(".")[2] for path in directory.iterdir())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "model.safetensors")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "packed"


def test_the_second_start_maps_the_same_bits(source: Path, directory: Path) -> None:
    fresh = start(source, None)
    first, second = (start(source, cache_in(directory)) for _ in range(2))
    assert first.file is None
    assert second.file is not None
    assert names_in(directory) == ["packed", "source"]
    assert_same(fresh, first)
    assert_same(fresh, second)
    ids = np.arange(ROWS)
    assert same_bits(fresh.matrices["a.weight"].rows_f32(ids), second.matrices["a.weight"].rows_f32(ids))
    x = np.random.default_rng(3).standard_normal((5, COLS)).astype(np.float32)
    for variant in _native.supported_variants():
        products = [
            _native.matmul([packed.matrices["b.weight"]], x, variant, 2)
            for packed in (fresh, second)
        ]
        assert same_bits(*products)


def test_files_and_directory_are_for_their_user_alone(source: Path, directory: Path) -> None:
    start(source, cache_in(directory))
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


def test_a_later_start_does_not_read_the_source_beyond_its_header(source: Path, directory: Path) -> None:
    fresh = start(source, cache_in(directory))
    content = bytearray(source.read_bytes())
    content[-4 * 300 * COLS :] = bytes(4 * 300 * COLS)
    status = source.stat()
    with source.open("r+b") as file:
        file.write(content)
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert_same(fresh, start(source, cache_in(directory)))


@pytest.mark.parametrize("what", ["header", "time", "size", "inode"])
def test_a_source_that_is_another_is_read(what: str, source: Path, directory: Path) -> None:
    first = start(source, cache_in(directory))
    if what == "header":  # of the same length, with the same time, in the same inode
        renamed = write_source(source.with_name("other"), names=("c.weight", *NAMES[1:]))
        source.write_bytes(renamed.read_bytes())
        os.utime(source, ns=(10**18, 10**18))
    elif what == "time":
        os.utime(source, ns=(10**18, 10**18 + 1))
    elif what == "size":
        write_source(source, names=("longer.weight", *NAMES[1:]))
    else:
        content = source.read_bytes()
        source.unlink()
        source.with_name("holds the old number").touch()
        source.write_bytes(content)
        os.utime(source, ns=(10**18, 10**18))
    again = start(source, cache_in(directory))
    assert again.file is None
    same_content = what in ("time", "inode")
    assert (again.content_id == first.content_id) == same_content
    # Weights that are there are not written twice, and known under both names.
    assert names_in(directory).count("packed") == (1 if same_content else 2)
    assert names_in(directory).count("source") == 2
    assert start(source, cache_in(directory)).file is not None


def test_a_copy_has_the_same_identity(source: Path, tmp_path: Path) -> None:
    copy = write_source(tmp_path / "copy.safetensors")
    other = write_source(tmp_path / "other.safetensors", seed=1)
    assert start(source, None).content_id == start(copy, None).content_id
    assert start(source, None).content_id != start(other, None).content_id


def test_packings_are_kept_apart(source: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    auto, exact = (start(source, cache_in(directory), precision) for precision in ("auto", "float32"))
    assert exact.file is None
    assert names_in(directory).count("packed") == 2
    assert_same(auto, start(source, cache_in(directory)))
    monkeypatch.setattr(_native, "PACKED_LAYOUT", _native.PACKED_LAYOUT + 1)
    assert start(source, cache_in(directory)).file is None
    assert start(source, cache_in(directory)).file is not None


def test_weights_that_are_in_no_file_are_not_kept(directory: Path) -> None:
    weights = {"a": WeightData.from_numpy(np.ones((16, 32), np.float32), "a")}
    cache = cache_in(directory)
    packed = pack_weights(_native, weights, "auto", 1, cache)
    cache.wait()
    assert len(packed.content_id) == 64
    assert not directory.exists()


def test_nothing_is_kept_or_found_without_room(source: Path, directory: Path) -> None:
    assert start(source, cache_in(directory, limit=0)).file is None
    assert start(source, cache_in(directory, limit=1000)).file is None
    assert not directory.exists()
    start(source, cache_in(directory))
    assert start(source, cache_in(directory, limit=0)).file is None


def test_small_models_are_not_worth_a_file(source: Path, directory: Path) -> None:
    start(source, PackedCache(directory, 1 << 30))
    assert not directory.exists()


def test_those_not_used_for_longest_go(tmp_path: Path, directory: Path) -> None:
    sources = [write_source(tmp_path / f"{seed}.safetensors", seed) for seed in range(4)]
    start(sources[0], cache_in(directory))
    size = cache_in(directory).entries()[0].nbytes
    cache = cache_in(directory, limit=3 * size + 4096)
    for number, source in enumerate(sources[:3]):
        start(source, cache)
        for entry in cache.entries():  # file times are coarse
            os.utime(entry.path, (number, number)) if entry.used > 10**6 else None
    assert start(sources[0], cache).file is not None  # used just now, so the second is the oldest
    start(sources[3], cache)
    assert len(cache.entries()) == 3
    assert [start(source, None).content_id in {e.path.name[:64] for e in cache.entries()} for source in sources] == [
        True,
        False,
        True,
        True,
    ]


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["empty", "cut", "longer", "magic", "header", "directory", "other weights"])
def test_a_damaged_file_is_made_anew(
    damage: str, source: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = start(source, cache_in(directory))
    path = cache_in(directory).entries()[0].path
    size = path.stat().st_size
    if damage in ("empty", "cut"):
        os.truncate(path, 0 if damage == "empty" else size - 1)
    elif damage == "longer":
        path.write_bytes(path.read_bytes() + b"\0")
    elif damage == "other weights":
        other = write_source(source.with_name("other.safetensors"), seed=5)
        start(other, cache_in(directory))
        wrong = next(entry.path for entry in cache_in(directory).entries() if entry.path != path)
        wrong.replace(path)
    else:
        flip(path, {"magic": 0, "header": 20, "directory": size - 9}[damage])
    with caplog.at_level(logging.WARNING):
        assert start(source, cache_in(directory)).file is None
    assert len(caplog.records) == 1
    assert "made anew" in caplog.text
    third = start(source, cache_in(directory))
    assert third.file is not None
    assert_same(fresh, third)


def test_a_flipped_byte_of_a_weight_is_found_by_those_who_read_all(source: Path, directory: Path) -> None:
    start(source, cache_in(directory))
    path = cache_in(directory).entries()[0].path
    assert list(PackedFile(path).damaged_weights()) == []
    record = PackedFile(path).records["b.weight"]
    flip(path, record.offset + record.nbytes - 1)
    assert list(PackedFile(path).damaged_weights()) == ["b.weight"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"source_key": "x"}', '{"content_id": "../../x"}'])
def test_a_damaged_note_about_a_source_is_written_again(text: str, source: Path, directory: Path) -> None:
    start(source, cache_in(directory))
    note = next(directory.glob("*.source"))
    said = json.loads(note.read_text())
    note.write_text(json.dumps({**said, **json.loads(text)}) if text.startswith('{"') else text)
    assert start(source, cache_in(directory)).file is None
    assert start(source, cache_in(directory)).file is not None


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_what_others_may_write_to_is_not_trusted(mode: int, source: Path, directory: Path) -> None:
    start(source, cache_in(directory))
    for suffix in ("*.packed", "*.source"):
        next(directory.glob(suffix)).chmod(mode)
        assert start(source, cache_in(directory)).file is None
        assert start(source, cache_in(directory)).file is not None


def test_what_another_user_owns_is_not_trusted(
    source: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(source, cache_in(directory))
    path = cache_in(directory).entries()[0].path
    if os.geteuid() == 0:
        os.chown(path, 4321, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4321)
    with pytest.raises(WeightsError, match="another user"):
        PackedFile(path)


def test_a_file_that_is_cut_while_it_is_in_use_is_an_error(source: Path, directory: Path) -> None:
    start(source, cache_in(directory))
    packed = start(source, cache_in(directory))
    packed.check()
    path = cache_in(directory).entries()[0].path
    os.truncate(path, 4096)
    packed.matrices["b.weight"].rows_f32(np.arange(300))
    with pytest.raises(WeightsError, match="cut"):
        packed.check()


def test_a_file_that_is_deleted_while_it_is_in_use_stays(source: Path, directory: Path) -> None:
    fresh = start(source, cache_in(directory))
    packed = start(source, cache_in(directory))
    assert cache_in(directory).clear() > 0
    assert names_in(directory) == []
    assert_same(fresh, packed)
    packed.check()


@pytest.mark.parametrize(
    ("call", "after"), [("posix_fallocate", 0), ("pwrite", 0), ("pwrite", 2), ("fsync", 0), ("fsync", 1)]
)
def test_a_full_disk(
    call: str,
    after: int,
    source: Path,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real, calls = getattr(os, call), []

    def full(*arguments: Any) -> Any:
        calls.append(call)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    monkeypatch.setattr(os, call, full)
    with caplog.at_level(logging.WARNING):
        packed = start(source, cache_in(directory))
    assert len(caplog.records) == 1
    assert "not kept" in caplog.text
    assert "packed" not in names_in(directory)
    assert "partial" not in names_in(directory)
    monkeypatch.undo()
    assert_same(packed, start(source, cache_in(directory)))
    assert start(source, cache_in(directory)).file is not None


def test_the_last_of_a_disk_is_left_free(
    source: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_module, "_DISK_SHARE", 1.0)
    start(source, cache_in(directory))
    assert "bytes are free" in caplog.text
    assert names_in(directory) == []


def test_a_directory_that_cannot_be_made(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert start(source, cache_in(tmp_path / "file" / "packed")).file is None
    assert len(caplog.records) == 1
    assert start(source, cache_in(tmp_path / "file" / "packed")).file is None


STARTER = """
import os, signal, sys
from pathlib import Path
from puna import _native
from puna.engine.packed_cache import PackedCache, packed_file
from puna.engine.packed_weights import pack_weights
from puna.graph.weights import load_weights

source, directory, point = sys.argv[1:]
module, _, name = point.partition(":")
if name:
    owner = {"os": os, "path": Path}[module]
    real, calls = getattr(owner, name.rstrip("2")), []
    def die(*arguments, **more):
        calls.append(1)
        if len(calls) == (2 if name.endswith("2") else 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **more)
    setattr(owner, name.rstrip("2"), die)
weights = {name: place.data() for name, place in load_weights(source).items()}
print("ready", flush=True)
sys.stdin.readline()
cache = PackedCache(Path(directory), 1 << 30, min_bytes=0)
packed = pack_weights(_native, weights, "auto", 1, cache)
cache.wait()
print(packed.content_id, packed.file is not None)
"""


@contextmanager
def starter(source: Path, directory: Path, point: str = "") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", STARTER, str(source), str(directory), point]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.communicate(timeout=60)


POINTS = ("os:posix_fallocate", "os:pwrite", "os:pwrite2", "os:fsync", "os:fsync2", "path:rename", "path:rename2")


@pytest.mark.parametrize("point", POINTS)
def test_a_process_that_dies_while_it_writes(point: str, source: Path, directory: Path) -> None:
    with starter(source, directory, point) as process:
        process.communicate("\n", timeout=60)
    assert process.returncode == -signal.SIGKILL
    left = names_in(directory)
    assert "source" not in left
    assert ("packed" in left) == (point == "path:rename2")  # whole, and only not known yet
    fresh = start(source, None)
    assert_same(fresh, start(source, cache_in(directory)))
    assert names_in(directory) == ["packed", "source"]
    second = start(source, cache_in(directory))
    assert second.file is not None
    assert_same(fresh, second)


def test_two_first_starts_at_once(source: Path, directory: Path) -> None:
    with starter(source, directory) as one, starter(source, directory) as two:
        for process in (one, two):
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        said = [process.communicate(timeout=60)[0].split()[0] for process in (one, two)]
    assert said == [start(source, None).content_id] * 2
    assert names_in(directory) == ["packed", "source"]
    assert start(source, cache_in(directory)).file is not None


def test_nobody_waits_for_a_writer(source: Path, directory: Path) -> None:
    start(source, cache_in(directory))
    path = cache_in(directory).entries()[0].path
    cache_in(directory).clear()
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        begin = time.perf_counter()
        start(source, cache_in(directory))
        assert time.perf_counter() - begin < 5
        assert names_in(directory) == ["partial"]
        cache_in(directory).clear()
        assert names_in(directory) == ["partial"]  # it is being written
    start(source, cache_in(directory))
    assert names_in(directory) == ["packed", "source"]


def test_a_writer_can_be_stopped(source: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_in(directory)
    real = os.pwrite

    def slow(*arguments: Any) -> int:
        cache._is_stopped.wait(10)
        return real(*arguments)

    monkeypatch.setattr(os, "pwrite", slow)
    pack_weights(_native, weights_of(source), "auto", 1, cache)
    cache.stop()
    assert names_in(directory) == []


def test_a_source_is_given_back_while_it_is_packed(tmp_path: Path) -> None:
    rows, cols = 4096, 2048
    path = tmp_path / "large.safetensors"
    save_file({"a": np.ones((rows, cols), np.float32)}, path)
    weights = weights_of(path)
    pack_weights(_native, weights, "auto", 2)
    smaps = Path("/proc/self/smaps").read_text().split(str(path))[1]
    resident = next(int(line.split()[1]) * 1024 for line in smaps.splitlines() if line.startswith("Rss:"))
    assert resident <= 2 << 21  # of 32 MiB
