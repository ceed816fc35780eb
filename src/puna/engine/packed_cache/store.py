"""`PackedCache`: a directory of files with packed weights."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from puna.engine.packed_cache.packed_file import Content, PackedFile, file_bytes, write_packed_file
from puna.errors import WeightsError

__all__ = ["CacheEntry", "PackedCache"]

_SUFFIX: Final = ".packed"
_KNOWN: Final = ".source"
_PARTIAL: Final = ".partial"
_MAX_KNOWN: Final = 512
_DISK_SHARE: Final = 0.05  # of the disk that is left free
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_IDLE: Final = 19  # niceness
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A file of the cache.

    Attributes:
        path: The file.
        nbytes: Its size.
        used: When it was last used, in seconds since 1970.
    """

    path: Path
    nbytes: int
    used: float


class PackedCache:
    """Packed weights on disk, for later starts to map.

    Files are named by what the weights are (`content_id`) and how they are packed. Beside them lie small files that say
    which weights some source files hold (`source_key`). Several processes may use a directory; none waits for another.
    Whatever goes wrong costs time and never an answer: weights are then packed in memory.

    Args:
        directory: Where the files are; it is made when something is written.
        limit_bytes: Most bytes of all files together; those that were not used for longest are deleted first. With 0
            nothing is kept and nothing found.
        min_bytes: Weights that take less are not worth a file.
    """

    def __init__(self, directory: Path, limit_bytes: int, *, min_bytes: int = 1 << 23) -> None:
        self.directory = directory
        self.limit_bytes = limit_bytes
        self._min_bytes = min_bytes
        self._writers: list[threading.Thread] = []
        self._is_stopped = threading.Event()

    def find(self, source_key: str, layout: str) -> PackedFile | None:
        """The packed form of the weights that a key stands for, unless it is not there or cannot be used."""
        identity = self._known(source_key) if self.limit_bytes > 0 else None
        if identity is None:
            return None
        path = self._path(identity, layout)
        try:
            file = PackedFile(path)
            if (file.content_id, file.layout) != (identity, layout):
                raise WeightsError("holds other weights than its name says", file=path)
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("packed weights cannot be read: %s", error)
            return None
        except WeightsError as error:
            self.reject(path, error)
            return None
        with contextlib.suppress(OSError):  # of root, or on a disk that is only read
            os.utime(path)
        return file

    def reject(self, path: Path, error: WeightsError) -> None:
        """Delete a file that cannot be used, and say so once."""
        _log.warning("packed weights are made anew: %s", error)
        with contextlib.suppress(OSError):
            path.unlink()

    def store(
        self, source_key: str, content_id: str, layout: str, weights: Sequence[Content], sources: Sequence[str]
    ) -> None:
        """Write packed weights, in the background, unless a file holds them already or another process writes it.

        A process that ends normally waits for its writers.

        Args:
            source_key: What a later start will ask for.
            content_id: What the weights are.
            layout: Which packed bytes they have.
            weights: The packed bytes; they must stay as they are.
            sources: Names of the files they came from.
        """
        size = file_bytes(weights)
        if size < self._min_bytes:
            return
        if size > self.limit_bytes:
            _log.info("packed weights of %d bytes are not kept: the cache is limited to %d", size, self.limit_bytes)
            return
        arguments = (source_key, content_id, layout, weights, sources)
        writer = threading.Thread(target=self._store, args=arguments, name="puna-weight-cache")
        self._writers.append(writer)
        writer.start()

    def wait(self) -> None:
        """Return when everything that was to be written is on the disk."""
        for writer in self._writers:
            writer.join()
        self._writers.clear()

    def stop(self) -> None:
        """Give up what is being written."""
        self._is_stopped.set()
        self.wait()
        self._is_stopped.clear()

    def entries(self) -> list[CacheEntry]:
        """All files, those first that were used last."""
        found = []
        for path in self._files(_SUFFIX):
            with contextlib.suppress(FileNotFoundError):  # another process evicted it
                status = path.stat()
                found.append(CacheEntry(path, status.st_size, status.st_mtime))
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def clear(self) -> int:
        """Delete everything that is not being written; returns the bytes that became free.

        Processes that have a file mapped keep it until they end.

        Raises:
            OSError: A file cannot be deleted.
        """
        freed = 0
        for entry in self.entries():
            entry.path.unlink(missing_ok=True)
            freed += entry.nbytes
        for path in self._files(_KNOWN):
            path.unlink(missing_ok=True)
        self._sweep()
        return freed

    def _path(self, content_id: str, layout: str) -> Path:
        return self.directory / f"{content_id}-{layout}{_SUFFIX}"

    def _files(self, suffix: str) -> list[Path]:
        try:
            return [path for path in self.directory.iterdir() if path.name.endswith(suffix)]
        except OSError:
            return []

    def _known(self, source_key: str) -> str | None:
        """The content id that a start before this one found behind a key."""
        try:
            with (self.directory / f"{source_key}{_KNOWN}").open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
                    return None
                said = json.loads(file.read(4096))
        except (OSError, ValueError):
            return None
        if not isinstance(said, dict) or said.get("source_key") != source_key:
            return None
        identity = said.get("content_id")
        return identity if isinstance(identity, str) and _HEX.fullmatch(identity) else None

    def _store(
        self, source_key: str, content_id: str, layout: str, weights: Sequence[Content], sources: Sequence[str]
    ) -> None:
        with contextlib.suppress(OSError, AttributeError):  # a wish only
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _IDLE)
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._sweep()
            path = self._path(content_id, layout)
            if not self._is_usable(path) and not self._write(path, content_id, layout, weights, sources):
                return
            self._remember(source_key, content_id)
        except OSError as error:
            _log.warning("packed weights are not kept: %s", error)

    def _is_usable(self, path: Path) -> bool:
        try:
            PackedFile(path)
        except (OSError, WeightsError):
            return False
        return True

    def _write(
        self, path: Path, content_id: str, layout: str, weights: Sequence[Content], sources: Sequence[str]
    ) -> bool:
        """Write a file under another name and give it its own when all of it is on the disk."""
        partial = path.with_name(path.name + _PARTIAL)
        with _locked(partial) as descriptor:
            if descriptor is None:
                return False  # another process writes it
            if self._is_usable(path):
                partial.unlink()
                return True  # another process wrote it just now
            is_done = False
            try:
                self._make_room(file_bytes(weights))
                os.ftruncate(descriptor, 0)
                is_done = write_packed_file(
                    descriptor,
                    weights,
                    content_id=content_id,
                    layout=layout,
                    sources=sources,
                    go_on=lambda: not self._is_stopped.is_set(),
                )
                if is_done:
                    partial.rename(path)
                    _sync(self.directory)
                return is_done
            finally:
                if not is_done:
                    partial.unlink(missing_ok=True)

    def _make_room(self, nbytes: int) -> None:
        """Delete what was not used for longest until so many bytes more are within the limit.

        Raises:
            OSError: The disk would be nearly full afterwards.
        """
        entries = self.entries()
        total = sum(entry.nbytes for entry in entries)
        while entries and total + nbytes > self.limit_bytes:
            oldest = entries.pop()
            oldest.path.unlink(missing_ok=True)
            total -= oldest.nbytes
        disk = os.statvfs(self.directory)
        free, whole = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        if free - nbytes < whole * _DISK_SHARE:
            raise OSError(f"{self.directory}: {free:,} bytes are free, {nbytes:,} and some to spare are needed")

    def _remember(self, source_key: str, content_id: str) -> None:
        text = json.dumps({"source_key": source_key, "content_id": content_id})
        partial = self.directory / f"{source_key}.{os.getpid()}{_PARTIAL}"
        with _locked(partial) as descriptor:
            if descriptor is None:
                return
            os.write(descriptor, text.encode())
            os.fsync(descriptor)
            partial.rename(self.directory / f"{source_key}{_KNOWN}")
        known = self._files(_KNOWN)
        if len(known) > _MAX_KNOWN:
            ages = sorted((path.lstat().st_mtime, path) for path in known if path.exists())
            for _, path in ages[:-_MAX_KNOWN]:
                path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Delete what processes left that died while they wrote."""
        for path in self._files(_PARTIAL):
            with contextlib.suppress(OSError), _locked(path) as descriptor:
                if descriptor is not None:
                    path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """A file of this user, open for reading and writing, that no other process has; None if one has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        status = os.fstat(descriptor)
        is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        try:
            is_still_there = os.path.samestat(status, path.lstat())
        except FileNotFoundError:
            is_still_there = False  # it was finished, and got its name, between opening and locking
        yield descriptor if is_ours and is_still_there else None
    finally:
        os.close(descriptor)


def _sync(directory: Path) -> None:
    """Have the names in a directory on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
