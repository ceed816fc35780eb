"""GGUF files, version 2 and 3, whole or split.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Everything is checked before the first tensor is
    looked at: see
`docs/weights.md`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from puna.dtype import DType
from puna.errors import UnsupportedModelError, WeightsError
from puna.graph.quantization import QuantizationEncoding
from puna.graph.weights.gguf_metadata import Cursor, read_metadata
from puna.graph.weights.mapping import MappedWeights
from puna.graph.weights.weight_data import TensorEntry, stored_bytes
from puna.graph.weights.weights import Weights, _Checkpoint

__all__ = ["GGUFWeights", "split_files"]

MAX_TENSORS: Final = 1 << 17
MAX_NAME_BYTES: Final = 4096
MAX_RANK: Final = 4
MAX_ALIGNMENT: Final = 1 << 20
DEFAULT_ALIGNMENT: Final = 32
_ALIGNMENT_KEY: Final = "general.alignment"

# Tensor types by number: plain elements …
_DTYPES: Final = MappingProxyType({
    0: DType.float32,
    1: DType.float16,
    24: DType.int8,
    25: DType.int16,
    26: DType.int32,
    27: DType.int64,
    28: DType.float64,
    30: DType.bfloat16,
})
# … and blocks.
_ENCODINGS: Final = MappingProxyType({
    2: QuantizationEncoding.Q4_0,
    3: QuantizationEncoding.Q4_1,
    6: QuantizationEncoding.Q5_0,
    7: QuantizationEncoding.Q5_1,
    8: QuantizationEncoding.Q8_0,
    10: QuantizationEncoding.Q2_K,
    11: QuantizationEncoding.Q3_K,
    12: QuantizationEncoding.Q4_K,
    13: QuantizationEncoding.Q5_K,
    14: QuantizationEncoding.Q6_K,
    15: QuantizationEncoding.Q8_K,
    16: QuantizationEncoding.IQ2_XXS,
    17: QuantizationEncoding.IQ2_XS,
    18: QuantizationEncoding.IQ3_XXS,
    19: QuantizationEncoding.IQ1_S,
    20: QuantizationEncoding.IQ4_NL,
    21: QuantizationEncoding.IQ3_S,
    22: QuantizationEncoding.IQ2_S,
    23: QuantizationEncoding.IQ4_XS,
    29: QuantizationEncoding.IQ1_M,
    34: QuantizationEncoding.TQ1_0,
    35: QuantizationEncoding.TQ2_0,
    39: QuantizationEncoding.MXFP4,
})
# Types that exist or existed elsewhere, for a message that names them.
_REFUSED: Final = MappingProxyType({
    4: "Q4_2 (removed from the format)",
    5: "Q4_3 (removed from the format)",
    9: "Q8_1 (activations only)",
    31: "Q4_0_4_4 (removed from the format)",
    32: "Q4_0_4_8 (removed from the format)",
    33: "Q4_0_8_8 (removed from the format)",
    36: "IQ4_NL_4_4 (removed from the format)",
    37: "IQ4_NL_4_8 (removed from the format)",
    38: "IQ4_NL_8_8 (removed from the format)",
    40: "NVFP4",
    41: "Q1_0",
})
_SPLIT_NAME: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


class _File:
    """One checked GGUF file: its metadata and its tensors."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.file = MappedWeights(path)
        self.path = self.file.path
        try:
            self._read()
        except (WeightsError, UnsupportedModelError):
            self.file.check()  # a header that turned to zeros under the reader is not its own fault
            raise
        self.file.check()

    def _read(self) -> None:
        cursor = Cursor(self.file)
        magic = bytes(self.file.data[:4])
        if magic != b"GGUF":
            cursor.fail(f"begins with {magic!r}, not with b'GGUF'")
        cursor.position = 4
        version = cursor.u32("the version")
        if version & 0xFFFF == 0 and version:
            raise UnsupportedModelError("byte order", "big-endian", file=self.path, supported="little-endian")
        if version not in (2, 3):
            raise UnsupportedModelError("GGUF version", version, file=self.path, supported="2, 3")
        num_tensors = cursor.u64("the number of tensors")
        num_keys = cursor.u64("the number of metadata keys")
        if num_tensors > min(MAX_TENSORS, cursor.left() // 24):  # the least entry: empty name, no axes, type, offset
            message = f"the file is said to have {num_tensors} tensors; it has {cursor.left()} bytes left"
            cursor.fail(message, at=8)
        self.metadata = read_metadata(cursor, num_keys)
        self.alignment = self._alignment()
        self.entries: dict[str, TensorEntry] = {}
        described = [self._tensor(cursor) for _ in range(num_tensors)]
        self.file.header_bytes = cursor.position
        data_begin = -(-cursor.position // self.alignment) * self.alignment
        for at, name, dtype, encoding, shape, offset in described:
            if name in self.entries:
                cursor.fail("the name is there twice", name=name, at=at)
            self.entries[name] = self._place(cursor, at, name, dtype, encoding, shape, data_begin, offset)
        self._check_overlaps()

    def _alignment(self) -> int:
        value = self.metadata.get(_ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not is_number or not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
            message = f"{value!r} is not an alignment: a power of two from 8 to {MAX_ALIGNMENT} is expected"
            raise WeightsError(message, file=self.path, tensor=_ALIGNMENT_KEY)
        return int(value)

    def _tensor(
        self, cursor: Cursor
    ) -> tuple[int, str, DType, QuantizationEncoding | None, tuple[int, ...], int]:
        at = cursor.position
        name = cursor.string("a tensor's name", max_bytes=MAX_NAME_BYTES)
        rank = cursor.u32("the number of axes", name)
        if rank > MAX_RANK:
            cursor.fail(f"has {rank} axes; at most {MAX_RANK} are possible", name=name, at=at)
        extents = [cursor.u64("the shape", name) for _ in range(rank)]
        if not all(extents):
            cursor.fail(f"has an axis without elements: {extents}", name=name, at=at)
        type_number = cursor.u32("the type", name)
        offset = cursor.u64("the offset", name)
        encoding = _ENCODINGS.get(type_number)
        dtype = DType.uint8 if encoding else _DTYPES.get(type_number)
        if dtype is None:
            value = _REFUSED.get(type_number, type_number)
            supported = ", ".join([*(str(e) for e in _ENCODINGS.values()), *(str(d) for d in _DTYPES.values())])
            raise UnsupportedModelError(f"type of tensor {name!r}", value, file=self.path, supported=supported)
        return at, name, dtype, encoding, tuple(reversed(extents)), offset

    def _place(
        self,
        cursor: Cursor,
        at: int,
        name: str,
        dtype: DType,
        encoding: QuantizationEncoding | None,
        shape: tuple[int, ...],
        data_begin: int,
        offset: int,
    ) -> TensorEntry:
        if encoding is not None and (not shape or shape[-1] % encoding.elements_per_block):
            multiple = encoding.elements_per_block
            message = f"has shape {list(shape)}: a row of {encoding} is a multiple of {multiple} elements"
            cursor.fail(message, name=name, at=at)
        nbytes = stored_bytes(shape, dtype, encoding)
        if offset % self.alignment:
            cursor.fail(f"offset {offset} is not a multiple of the alignment {self.alignment}", name=name, at=at)
        begin = data_begin + offset
        if begin + nbytes > self.file.size:
            message = f"its {nbytes} bytes from byte {begin} on reach past the end of the file ({self.file.size} bytes)"
            cursor.fail(message, name=name, at=at)
        return TensorEntry(name, self.file, begin, nbytes, dtype, shape, encoding)

    def _check_overlaps(self) -> None:
        reached, last = 0, ""
        for entry in sorted(self.entries.values(), key=lambda entry: entry.begin):
            if entry.begin < reached:
                raise WeightsError(f"overlaps {last!r}", file=self.path, tensor=entry.name, offset=entry.begin)
            reached, last = entry.begin + entry.nbytes, entry.name


def split_files(path: str | os.PathLike[str]) -> list[Path]:
    """All files of a split set, by the name of its first (`…-00001-of-00003.gguf`); any other name stands for itself.

    Raises:
        WeightsError: the name is that of another part than the first; the message names the first.
    """
    first = Path(path)
    match = _SPLIT_NAME.fullmatch(first.name)
    if match is None:
        return [first]
    stem, number, count = match[1], int(match[2]), int(match[3])
    if number != 1 or count < 1:
        message = f"is part {number} of {count}; name the first: {stem}-00001-of-{match[3]}.gguf"
        raise WeightsError(message, file=first)
    return [first.with_name(f"{stem}-{part:05d}-of-{match[3]}.gguf") for part in range(1, count + 1)]


class GGUFWeights(Weights):
    """The tensors and the metadata of a GGUF file, or of a split set by the name of its first file.

    Args:
        path: the file.

    Raises:
        WeightsError: the file breaks the format, or a part of the set is missing or does not belong to it.
        UnsupportedModelError: a version, byte order or tensor type that Puna does not read.
    """

    __slots__ = ()

    def __init__(self, path: str | os.PathLike[str]) -> None:
        paths = split_files(path)
        entries: dict[str, TensorEntry] = {}
        files = []
        first: Mapping[str, Any] = {}
        for number, part in enumerate(paths):
            file = _File(part)
            if number == 0:
                first = file.metadata
            _check_part(file, number, len(paths))
            for name in file.entries.keys() & entries.keys():
                raise WeightsError(f"is in {entries[name].source.path} too", file=part, tensor=name)
            entries.update(file.entries)
            files.append(file.file)
        if "split.tensors.count" in first:
            expected = _integer(first, "split.tensors.count", paths[0])
            if expected != len(entries):
                message = f"the set has {len(entries)} tensors, {expected} are promised"
                raise WeightsError(message, file=paths[0], tensor="split.tensors.count")
        self._checkpoint = _Checkpoint(entries, files, MappingProxyType(dict(first)))
        self._prefix = ""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The file's key-value pairs (of a split set: its first file's). Lists of strings are decoded on demand."""
        return self._checkpoint.metadata

    @property
    def path(self) -> str:
        """The file, of a split set the first."""
        return str(self._checkpoint.files[0].path)


def _check_part(file: _File, number: int, count: int) -> None:
    """A part must say that it is the one that its name says."""
    said_count = _integer(file.metadata, "split.count", file.path) if "split.count" in file.metadata else 0
    said_number = _integer(file.metadata, "split.no", file.path) if "split.no" in file.metadata else 0
    if (said_count or 1) != count or said_number != number:
        message = f"is part {said_number} of {said_count or 1} (from 0), its name says part {number} of {count}"
        raise WeightsError(message, file=file.path, tensor="split.no")


def _integer(metadata: Mapping[str, Any], key: str, path: Path) -> int:
    value = metadata[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise WeightsError(f"a whole number is expected, not {type(value).__name__}", file=path, tensor=key)
    return value
