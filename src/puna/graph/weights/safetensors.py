"""Safetensors files: an 8-byte length, a JSON header, and the tensors' bytes without gaps.

Source: the format description in the README of https://github.com/huggingface/safetensors. Everything is checked
    before the first
tensor is looked at: see `docs/weights.md`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Final, NoReturn

from puna.dtype import DType
from puna.errors import UnsupportedModelError, WeightsError
from puna.graph.weights.json_scan import JsonScanner
from puna.graph.weights.mapping import MappedWeights
from puna.graph.weights.weight_data import TensorEntry, stored_bytes
from puna.graph.weights.weights import Weights, _Checkpoint

__all__ = ["SafetensorWeights", "read_safetensors"]

MAX_HEADER_BYTES: Final = 100_000_000
MAX_TENSORS: Final = 1 << 17
MAX_RANK: Final = 32
MAX_NAME_BYTES: Final = 4096
_METADATA_KEY: Final = "__metadata__"

_DTYPES: Final = MappingProxyType({
    "BOOL": DType.bool,
    "U8": DType.uint8,
    "I8": DType.int8,
    "U16": DType.uint16,
    "I16": DType.int16,
    "U32": DType.uint32,
    "I32": DType.int32,
    "U64": DType.uint64,
    "I64": DType.int64,
    "F16": DType.float16,
    "BF16": DType.bfloat16,
    "F32": DType.float32,
    "F64": DType.float64,
    "F8_E4M3": DType.float8_e4m3fn,
    "F8_E4M3FNUZ": DType.float8_e4m3fnuz,
    "F8_E5M2": DType.float8_e5m2,
    "F8_E5M2FNUZ": DType.float8_e5m2fnuz,
    "F8_E8M0": DType.float8_e8m0fnu,
})

# One member of the header as every known writer writes it; anything else goes through the scanner.
_USUAL: Final = re.compile(
    rb'"([^"\\\x00-\x1f]{1,512}+)":\{"dtype":"([A-Z0-9_]{1,16})",'
    rb'"shape":\[((?:(?:0|[1-9][0-9]{0,18})(?:,(?:0|[1-9][0-9]{0,18})){0,31}+)?+)\],'
    rb'"data_offsets":\[(0|[1-9][0-9]{0,18}),(0|[1-9][0-9]{0,18})\]\}'
)


class _Header:
    """Reads the header of one file into entries by name."""

    def __init__(self, file: MappedWeights) -> None:
        self.file = file
        self.entries: dict[str, TensorEntry] = {}
        self.metadata: dict[str, str] = {}
        if file.size < 8:
            raise WeightsError(f"has {file.size} bytes, too few for the header's length", file=file.path, offset=0)
        length = int.from_bytes(file.data[:8], "little")
        if length > MAX_HEADER_BYTES:
            message = f"the header is said to have {length} bytes; at most {MAX_HEADER_BYTES} are read"
            raise WeightsError(message, file=file.path, offset=0)
        if length > file.size - 8:
            message = f"the header is said to have {length} bytes, the file has {file.size - 8} after its length"
            raise WeightsError(message, file=file.path, offset=0)
        self.data_begin = 8 + length
        self.data_bytes = file.size - self.data_begin
        file.header_bytes = self.data_begin
        self.scan = JsonScanner(file.data, 8, self.data_begin, file.path)
        if length == 0 or file.data[8] != 0x7B:
            self.scan.fail("the header does not begin with '{'")
        self._read()
        self._check_cover()

    def _read(self) -> None:
        scan = self.scan
        scan.position += 1
        if scan.peek() == 0x7D:
            scan.position += 1
            scan.finish()
            return
        while True:
            scan.peek()
            at = scan.position
            usual = _USUAL.match(scan.data, at, scan.end)
            if usual is not None:
                scan.position = usual.end()
                self._add_usual(usual, at)
            else:
                self._add_member(at)
            if scan.peek() != 0x2C:
                break
            scan.position += 1
        scan.expect(b"}")
        scan.finish()

    def _add_usual(self, usual: re.Match[bytes], at: int) -> None:
        try:
            name = usual[1].decode()
        except UnicodeDecodeError:
            self.scan.fail("the name is not UTF-8", at=at)
        shape = tuple(map(int, usual[3].split(b","))) if usual[3] else ()
        if name == _METADATA_KEY:
            self.scan.fail(f"{_METADATA_KEY} holds no text", at=at)
        self._add(name, usual[2].decode(), shape, (int(usual[4]), int(usual[5])), at)

    def _add_member(self, at: int) -> None:
        scan = self.scan
        name = scan.string(MAX_NAME_BYTES)
        scan.expect(b":")
        if name == _METADATA_KEY:
            if self.metadata:
                scan.fail(f"{_METADATA_KEY} is there twice", at=at)
            for key in scan.members(MAX_TENSORS):
                self.metadata[key] = scan.string()
            return
        dtype: str | None = None
        shape: tuple[int, ...] | None = None
        offsets: tuple[int, ...] | None = None
        for key in scan.members(3):
            if key == "dtype":
                dtype = scan.string(64)
            elif key == "shape":
                shape = scan.integers(MAX_RANK)
            elif key == "data_offsets":
                offsets = scan.integers(2)
            else:
                scan.fail(f"the field {key!r} is unknown", tensor=name)
        if dtype is None or shape is None or offsets is None or len(offsets) != 2:
            scan.fail("dtype, shape and two data_offsets are needed", tensor=name)
        self._add(name, dtype, shape, (offsets[0], offsets[1]), at)

    def _add(self, name: str, dtype: str, shape: tuple[int, ...], offsets: tuple[int, int], at: int) -> None:
        def fail(message: str) -> NoReturn:
            self.scan.fail(message, tensor=name, at=at)

        if name in self.entries:
            fail("the name is there twice")
        if len(self.entries) == MAX_TENSORS:
            fail(f"the file has more than {MAX_TENSORS} tensors")
        stored = _DTYPES.get(dtype)
        if stored is None:
            supported = ", ".join(_DTYPES)
            raise UnsupportedModelError(f"dtype of tensor {name!r}", dtype, file=self.file.path, supported=supported)
        if len(shape) > MAX_RANK:
            fail(f"has {len(shape)} axes; at most {MAX_RANK} are read")
        begin, end = offsets
        if not begin <= end <= self.data_bytes:
            fail(f"data_offsets {begin} to {end} are not inside the {self.data_bytes} bytes of data")
        nbytes = stored_bytes(shape, stored, None)
        if nbytes != end - begin:
            fail(f"{dtype}{list(shape)} takes {nbytes} bytes, data_offsets {begin} to {end} hold {end - begin}")
        self.entries[name] = TensorEntry(name, self.file, self.data_begin + begin, nbytes, stored, shape)

    def _check_cover(self) -> None:
        """The tensors must cover the data without holes and overlaps: there is no room for anything unseen."""
        reached, last = self.data_begin, None
        for entry in sorted(self.entries.values(), key=lambda entry: (entry.begin, entry.nbytes)):
            if entry.begin != reached:
                what = "overlaps" if entry.begin < reached else "leaves a hole after"
                before = repr(last) if last else "the header"
                raise WeightsError(f"{what} {before}", file=self.file.path, tensor=entry.name, offset=entry.begin)
            reached, last = entry.begin + entry.nbytes, entry.name
        if reached != self.file.size:
            message = f"{self.file.size - reached} bytes after the last tensor belong to none"
            raise WeightsError(message, file=self.file.path, tensor=last, offset=reached)


def read_safetensors(path: str | os.PathLike[str]) -> tuple[MappedWeights, dict[str, TensorEntry], dict[str, str]]:
    """Maps and checks one file; gives the mapping, its tensors by name and its `__metadata__`.

    Raises:
        WeightsError: the file breaks the format anywhere.
        UnsupportedModelError: a tensor's dtype is one that Puna does not read.
    """
    file = MappedWeights(path)
    try:
        header = _Header(file)
    except (WeightsError, UnsupportedModelError):
        file.check()  # a header that turned to zeros under the reader is not its own fault
        raise
    file.check()
    return file, header.entries, header.metadata


class SafetensorWeights(Weights):
    """The tensors of one or several safetensors files with disjoint names.

    Args:
        paths: the file, or all files of a sharded checkpoint.

    Raises:
        WeightsError: a file breaks the format, or a name is in two files.
        UnsupportedModelError: a tensor's dtype is one that Puna does not read.
    """

    __slots__ = ()

    def __init__(self, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> None:
        several: Sequence[str | os.PathLike[str]] = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        if not several:
            raise WeightsError("no safetensors file is named")
        entries: dict[str, TensorEntry] = {}
        metadata: dict[str, str] = {}
        files: list[MappedWeights] = []
        for path in several:
            file, found, described = read_safetensors(path)
            for name in found.keys() & entries.keys():
                message = f"is in {entries[name].source.path} too"
                raise WeightsError(message, file=file.path, tensor=name, offset=found[name].begin)
            entries.update(found)
            metadata.update(described)
            files.append(file)
        self._checkpoint = _Checkpoint(dict(sorted(entries.items())), files, MappingProxyType(metadata))
        self._prefix = ""

    @property
    def metadata(self) -> MappingProxyType[str, str]:
        """The texts of `__metadata__`, of all files together."""
        # Checkpoints of either format keep metadata of any type; the reader of this one has let texts through only.
        described: MappingProxyType[str, str] = self._checkpoint.metadata  # type: ignore[assignment]  # see above
        return described
