"""`BlockStore`: full blocks of the KV cache in files, found again by a later process.

A file is one block. All of it is covered by a checksum, and a file appears under its name only when it is complete, so
whatever a crash leaves behind is either right or skipped. Format, little endian:

```
8   magic "PUNAKV01"
32  identity of the model, its kernels and its cache (`cache_identity`)
16  hash of the block
8   number of tokens up to the end of the block
8   bytes of keys and values
32  BLAKE2b-256 of everything else
    tokens, int64
    keys and values, then their scales where there are any, as they lie in the cache
```
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import queue
import secrets
import struct
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from puna.errors import InvalidRequestError
from puna.pipelines.kv_cache.hashing import BlockHash

__all__ = ["BlockStore", "StoreCounts", "cache_identity"]

_MAGIC: Final = b"PUNAKV01"
_HEADER: Final = struct.Struct("<8s32s16sQQ")
_CHECKSUM_BYTES: Final = 32
_SECRET_BYTES: Final = 32
_SUFFIX: Final = ".kv"
_PARTIAL: Final = ".partial"
_STALE_S: Final = 3600.0  # a partial file this old has no writer any more
_PAUSE_S: Final = 30.0  # after a failed write
_FLUSH_S: Final = 10.0  # at most, when the process ends
_log = logging.getLogger(__name__)


def cache_identity(**facts: object) -> str:
    """The digest of everything that decides the bits of a block besides its tokens: 64 hexadecimal digits.

    Args:
        facts: The model's content, the kernels' variant and version, sizes and element types; their texts are hashed.
    """
    digest = hashlib.blake2b(digest_size=32, person=b"puna-kv-model")
    for name in sorted(facts):
        for data in (name.encode(), str(facts[name]).encode()):
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """What a store did so far.

    Attributes:
        num_blocks: Blocks that it holds, other models' included.
        num_bytes: Bytes of their files.
        num_loaded: Blocks that were read.
        num_written: Blocks that were written.
        num_dropped: Blocks that were not written: the queue was full, or the disk.
        num_damaged: Files that were skipped.
    """

    num_blocks: int
    num_bytes: int
    num_loaded: int
    num_written: int
    num_dropped: int
    num_damaged: int


@dataclass(frozen=True, slots=True)
class _Job:
    digest: BlockHash
    tokens: bytes
    planes: tuple[npt.NDArray[Any], ...]


class BlockStore:
    """Keeps full blocks in a directory, the most recently used ones, up to a size.

    Several models and processes may share a directory. It holds prompts and what was made of them: it is as
    confidential as these, and only its owner can read it. `put` copies a block and returns; a thread writes it. When
    that thread falls behind, blocks are dropped: they are a cache.

    Args:
        directory: Made if it is not there.
        identity: What `cache_identity` gave.
        max_bytes: Most bytes of all files together.
        max_queue_bytes: Most bytes that wait to be written.

    Raises:
        InvalidRequestError: The directory cannot be used.
    """

    def __init__(
        self, directory: Path, identity: str, *, max_bytes: int = 10 << 30, max_queue_bytes: int = 256 << 20
    ) -> None:
        self._root = directory
        self._identity = bytes.fromhex(identity)
        self._home = directory / identity[:32]
        self._max_bytes = max_bytes
        self._max_queue_bytes = max_queue_bytes
        self._lock = threading.Lock()  # of everything below
        self._files: OrderedDict[Path, int] = OrderedDict()  # least recently used first
        self._num_bytes = 0
        self._queued: dict[BlockHash, int] = {}
        self._num_loaded = self._num_written = self._num_dropped = self._num_damaged = 0
        self._resume_s = 0.0
        try:
            self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.hash_key = hashlib.blake2b(self._identity, key=_read_secret(directory / "secret")).digest()
            self._scan()
        except OSError as error:
            raise InvalidRequestError(f"{directory} cannot be used: {error}", param="prefix_cache_dir") from error
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write_all, name="puna-kv-writer", daemon=True)
        self._writer.start()
        self._finish = weakref.finalize(self, _finish, self._jobs, self._writer)

    def counts(self) -> StoreCounts:
        """What it did so far."""
        with self._lock:
            return StoreCounts(
                num_blocks=len(self._files),
                num_bytes=self._num_bytes,
                num_loaded=self._num_loaded,
                num_written=self._num_written,
                num_dropped=self._num_dropped,
                num_damaged=self._num_damaged,
            )

    def contains(self, digest: BlockHash) -> bool:
        """Whether a block with this hash was written; its file may still turn out to be damaged."""
        return self._path(digest) in self._files

    def put(self, digest: BlockHash, tokens: npt.NDArray[np.int64], planes: Sequence[npt.NDArray[Any]]) -> bool:
        """Copies a block and has it written soon.

        Args:
            digest: Its hash.
            tokens: All tokens up to its end, int64 `[n]`.
            planes: Its keys and values, and its scales.

        Returns:
            Whether it will be written; False where it is there already, or too many wait.
        """
        size = sum(plane.nbytes for plane in planes) + tokens.nbytes
        with self._lock:
            if self._path(digest) in self._files or digest in self._queued:
                return False
            is_full = sum(self._queued.values()) + size > self._max_queue_bytes
            if is_full or size > self._max_bytes or time.monotonic() < self._resume_s:
                self._num_dropped += 1
                return False
            self._queued[digest] = size
        self._jobs.put(_Job(digest, _token_bytes(tokens), tuple(plane.copy() for plane in planes)))
        return True

    def load(self, digest: BlockHash, tokens: npt.NDArray[np.int64], planes: Sequence[npt.NDArray[Any]]) -> bool:
        """Reads a block into `planes`; False: it is not there, or not intact, and what `planes` hold is void."""
        path = self._path(digest)
        try:
            with path.open("rb") as file:
                problem = self._read(file.fileno(), digest, _token_bytes(tokens), planes)
            if problem is None:
                os.utime(path)
        except FileNotFoundError:  # another process made room
            self._forget(path)
            return False
        except OSError as error:
            problem = str(error)
        with self._lock:
            if problem is None:
                self._num_loaded += 1
                if path in self._files:
                    self._files.move_to_end(path)
                return True
            self._num_damaged += 1
        _log.warning("skipped %s of the prefix cache: %s", path, problem)
        self._forget(path)
        with contextlib.suppress(OSError):
            path.unlink()
        return False

    def flush(self, timeout_s: float = _FLUSH_S) -> bool:
        """Waits until everything that was put is written; False: it took too long."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            with self._lock:
                if not self._queued:
                    return True
            time.sleep(0.002)
        return False

    def close(self) -> None:
        """Writes what waits and ends the thread; afterwards nothing is written any more."""
        self._finish()

    def _path(self, digest: BlockHash) -> Path:
        name = digest.hex()
        return self._home / name[:2] / f"{name}{_SUFFIX}"

    def _scan(self) -> None:
        """Lists the files of all models, and removes what dead writers left."""
        found: list[tuple[float, Path, int]] = []
        for path in self._root.glob("*/*/*"):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                if path.suffix == _SUFFIX:
                    found.append((stat.st_mtime, path, stat.st_size))
                elif path.suffix == _PARTIAL and time.time() - stat.st_mtime > _STALE_S:
                    path.unlink()
        for _time, path, size in sorted(found):
            self._files[path] = size
            self._num_bytes += size
        self._make_room(0)

    def _write_all(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._write(job)
            except OSError as error:
                _log.warning("the prefix cache is not written for %.0f s: %s", _PAUSE_S, error)
                with self._lock:
                    self._num_dropped += 1
                    self._resume_s = time.monotonic() + _PAUSE_S
            finally:
                with self._lock:
                    del self._queued[job.digest]

    def _write(self, job: _Job) -> None:
        path = self._path(job.digest)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        payload = [_raw(plane) for plane in job.planes]
        num_payload = sum(part.nbytes for part in payload)
        header = _HEADER.pack(_MAGIC, self._identity, job.digest, len(job.tokens) // 8, num_payload)
        checksum = _checksum(header, job.tokens, payload)
        size = len(header) + len(checksum) + len(job.tokens) + num_payload
        self._make_room(size)
        partial = path.with_name(f"{path.stem}-{os.getpid()}{_PARTIAL}")
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(header + checksum + job.tokens)
                for part in payload:
                    file.write(part)
            partial.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        with self._lock:
            self._files[path] = size
            self._num_bytes += size
            self._num_written += 1

    def _read(
        self, descriptor: int, digest: BlockHash, tokens: bytes, planes: Sequence[npt.NDArray[Any]]
    ) -> str | None:
        """Fills `planes`; returns what is wrong with the file, or None."""
        parts = [_raw(plane) for plane in planes]
        size = sum(part.nbytes for part in parts)
        expected = _HEADER.pack(_MAGIC, self._identity, digest, len(tokens) // 8, size)
        head = _read_exactly(descriptor, len(expected) + _CHECKSUM_BYTES + len(tokens))
        if head is None or os.fstat(descriptor).st_size != len(head) + size:
            return "it has another length than it should"
        header, checksum = head[: len(expected)], head[len(expected) : len(expected) + _CHECKSUM_BYTES]
        if header != expected:
            return "its header belongs to another block, model or cache"
        if head[len(expected) + _CHECKSUM_BYTES :] != tokens:
            return "it holds other tokens"
        for part in parts:
            done = 0
            while done < part.nbytes:
                count = os.readv(descriptor, [part[done:]])
                if count == 0:
                    return "it ends too early"
                done += count
        return None if _checksum(header, tokens, parts) == checksum else "its checksum is wrong"

    def _make_room(self, size: int) -> None:
        """Removes the least recently used files until one of `size` bytes fits."""
        while True:
            with self._lock:
                if self._num_bytes + size <= self._max_bytes or not self._files:
                    return
                path, freed = self._files.popitem(last=False)
                self._num_bytes -= freed
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def _forget(self, path: Path) -> None:
        with self._lock:
            self._num_bytes -= self._files.pop(path, 0)


def _finish(jobs: queue.SimpleQueue[_Job | None], writer: threading.Thread) -> None:
    jobs.put(None)
    writer.join(_FLUSH_S)


def _read_secret(path: Path) -> bytes:
    """The key under which all hashes of a directory are made; drawn by whoever comes first."""
    partial = path.with_name(f"{path.name}-{os.getpid()}-{secrets.token_hex(4)}{_PARTIAL}")
    if not path.exists():
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_SECRET_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)  # unlike a rename it never replaces the one that another process made
        partial.unlink()
    data = path.read_bytes()
    if len(data) != _SECRET_BYTES:
        raise OSError(f"{path} has {len(data)} bytes, expected {_SECRET_BYTES}; remove it to begin a new cache")
    return data


def _raw(plane: npt.NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array, in place."""
    return plane.reshape(-1).view(np.uint8).data


def _token_bytes(tokens: npt.NDArray[np.int64]) -> bytes:
    return tokens.astype("<i8", copy=False).tobytes()


def _checksum(header: bytes, tokens: bytes, parts: Sequence[memoryview]) -> bytes:
    digest = hashlib.blake2b(header, digest_size=_CHECKSUM_BYTES)
    digest.update(tokens)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _read_exactly(descriptor: int, count: int) -> bytes | None:
    parts: list[bytes] = []
    while count > 0:
        part = os.read(descriptor, count)
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
