"""The file format of packed weights.

    bytes 0-4095    the header: magic, version, size of the file, place and digest of the directory, digest of all that
    from 4096 on    the weights' packed bytes, each at a multiple of 4096
    at the end      the directory, JSON: content id, layout, sources; per weight its name, kind, shape, place, digest

The header is written last. A reader checks header, directory and size of the file, which touches two or three pages;
the digests of the weights are for `PackedFile.damaged_weights`, which reads everything.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from puna import _native
from puna.errors import WeightsError

__all__ = ["PackedFile", "PackedRecord", "file_bytes", "write_packed_file"]

Array = np.ndarray[Any, Any]

_MAGIC: Final = b"PUNAPACK"
_VERSION: Final = 1
_ALIGNMENT: Final = 4096
_HEADER: Final = struct.Struct("<8sIIQQQ64s")  # magic, version, zero, size, place and length of the directory, digest
_PIECE: Final = 1 << 23
_MAX_DIRECTORY: Final = 1 << 26


@dataclass(frozen=True, slots=True)
class PackedRecord:
    """A weight in the file.

    Attributes:
        name: Its full name.
        kind: A matrix as kernels read it, or a vector of float32.
        format: The storage format that it was packed from; `F32` for a vector.
        shape: In elements.
        offset: Where its bytes begin.
        nbytes: How many they are.
        digest: BLAKE2bp of them, in hex.
    """

    name: str
    kind: Literal["matrix", "vector"]
    format: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    digest: str


class PackedFile:
    """Packed weights in a mapped file, read when they are used.

    Args:
        path: The file.

    Raises:
        WeightsError: It is damaged, cut, or of another version; or not to be trusted, because another user than this
            one and root owns it or may write to it.
        OSError: It is missing or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        status = path.stat()
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
            raise WeightsError("belongs to another user, or others may write to it", file=path)
        try:
            self._map = _native.MappedFile(path)
        except (ValueError, RuntimeError) as error:
            raise WeightsError(f"cannot be mapped: {error}", file=path) from error
        self._data: Final = self._map.data
        directory = self._read_directory()
        try:
            self.content_id = str(directory["content_id"])
            self.layout = str(directory["layout"])
            self.sources = tuple(str(source) for source in directory["sources"])
            records = [PackedRecord(**{**row, "shape": tuple(row["shape"])}) for row in directory["weights"]]
        except (KeyError, TypeError) as error:
            raise WeightsError(f"the directory lacks {error}", file=path) from error
        self.records: Final = {record.name: record for record in records}

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._map.size

    @property
    def is_damaged(self) -> bool:
        """Whether the file was cut while it was mapped, and zeros were read in its place."""
        return self._map.damaged

    def matrix(self, name: str, precision: str) -> _native.PackedMatrix:
        """A matrix that keeps the mapping. Raises WeightsError when the file has none of this name that fits."""
        record = self._record(name, "matrix")
        try:
            rows, cols = record.shape
            matrix = _native.PackedMatrix.mapped(record.format, self._map, record.offset, rows, cols, precision)
        except ValueError as error:
            raise WeightsError(str(error), file=self.path, tensor=name) from error
        if matrix.nbytes != record.nbytes:
            raise WeightsError(f"has {record.nbytes} bytes, {matrix.nbytes} are expected", file=self.path, tensor=name)
        return matrix

    def vector(self, name: str) -> Array:
        """A vector, float32, that shares the file's memory. Raises as `matrix`."""
        record = self._record(name, "vector")
        try:
            return np.frombuffer(self._bytes(record), np.float32).reshape(record.shape)
        except ValueError as error:
            raise WeightsError(str(error), file=self.path, tensor=name) from error

    def damaged_weights(self) -> Iterator[str]:
        """Names of weights whose bytes are not those that were written. Reads all of them."""
        for record in self.records.values():
            if _native.blake2bp(self._bytes(record)).hex() != record.digest:
                yield record.name
            self._map.release()

    def _bytes(self, record: PackedRecord) -> memoryview:
        return self._data[record.offset : record.offset + record.nbytes]

    def _record(self, name: str, kind: str) -> PackedRecord:
        record = self.records.get(name)
        if record is None or record.kind != kind:
            raise WeightsError(f"holds no {kind} of this name", file=self.path, tensor=name)
        return record

    def _read_directory(self) -> dict[str, Any]:
        def fail(message: str) -> WeightsError:
            return WeightsError(message, file=self.path)

        head = bytes(self._data[:_ALIGNMENT])
        if len(head) < _ALIGNMENT or head[: len(_MAGIC)] != _MAGIC:
            raise fail("is no file of packed weights, or one that was not finished")
        if _native.blake2bp(head[: _HEADER.size]) != head[_HEADER.size : _HEADER.size + 64]:
            raise fail("the header is damaged")
        _, version, _, size, begin, length, digest = _HEADER.unpack_from(head)
        if version != _VERSION:
            raise fail(f"is of version {version}, {_VERSION} is read")
        if size != self._map.size or begin + length > size or length > _MAX_DIRECTORY:
            raise fail(f"has {self._map.size} bytes, {size} were written")
        text = self._data[begin : begin + length]
        if _native.blake2bp(text) != digest:
            raise fail("the directory is damaged")
        directory = json.loads(bytes(text))
        assert isinstance(directory, dict), "its digest is right, so this is what was written"
        return directory


Content = tuple[str, Literal["matrix", "vector"], str, tuple[int, ...], memoryview]
"""A weight to be written: name, kind, format, shape, packed bytes."""


def file_bytes(weights: Sequence[Content]) -> int:
    """About how large a file with these weights is."""
    return _ALIGNMENT + sum(-(-data.nbytes // _ALIGNMENT) * _ALIGNMENT + 512 for *_, data in weights)


def write_packed_file(
    descriptor: int,
    weights: Sequence[Content],
    *,
    content_id: str,
    layout: str,
    sources: Sequence[str],
    go_on: Callable[[], bool],
) -> bool:
    """Write all of a file and have it on the disk when this returns.

    Args:
        descriptor: An empty file, open for writing.
        weights: What it will hold.
        content_id: The weights' identity.
        layout: Which packed bytes they have.
        sources: Names of the files that they were in, for people.
        go_on: Asked between pieces.

    Returns:
        False when `go_on` said so; the file is of no use then.

    Raises:
        OSError: The disk is full, or failed.
    """
    os.posix_fallocate(descriptor, 0, file_bytes(weights))  # a full disk is told now, and not by a signal later
    records: list[PackedRecord] = []
    offset = _ALIGNMENT
    for name, kind, format_, shape, data in weights:
        raw = data.cast("B") if data.nbytes else data
        digest = _native.blake2bp(raw).hex()
        records.append(PackedRecord(name, kind, format_, shape, offset, raw.nbytes, digest))
        for begin in range(0, raw.nbytes, _PIECE):
            if not go_on():
                return False
            _write(descriptor, raw[begin : begin + _PIECE], offset + begin)
        offset += -(-raw.nbytes // _ALIGNMENT) * _ALIGNMENT
    rows = [asdict(record) for record in records]
    directory = {"content_id": content_id, "layout": layout, "sources": list(sources), "weights": rows}
    text = json.dumps(directory).encode()
    size = offset + len(text)
    _write(descriptor, memoryview(text), offset)
    head = _HEADER.pack(_MAGIC, _VERSION, 0, size, offset, len(text), _native.blake2bp(text))
    os.ftruncate(descriptor, size)
    os.fsync(descriptor)
    _write(descriptor, memoryview(head + _native.blake2bp(head)), 0)
    os.fsync(descriptor)
    return True


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
