"""Reads `tokenizer.model`, SentencePiece's own file.

The file is a protocol buffer (`ModelProto` of sentencepiece_model.proto): field 1 repeats the pieces (1 text, 2 float
score, 3 kind), field 2 is the trainer's record (3 model type, 35 byte fallback, 40-43 the ids of unk, bos, eos, pad),
field 3 the normalizer's (2 compiled rules, 3 dummy prefix, 4 remove extra white space, 5 escape white space).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from puna.errors import UnsupportedModelError, WeightsError

_BPE = 2
_BYTE_KIND = 6
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass
class SentencePieceModel:
    """The parts of a SentencePiece file that encoding depends on.

    Attributes:
        tokens: Pieces by id.
        scores: Score of each piece.
        types: Kind of each piece: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
        add_dummy_prefix: A space is put before the text.
        charsmap: Compiled normalization rules; empty for none.
        unknown_id, bos_id, eos_id, pad_id: Ids, -1 for none.
    """

    tokens: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    add_dummy_prefix: bool = True
    charsmap: bytes = b""
    unknown_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Reads a SentencePiece model of the byte-pair kind.

    Args:
        path: The `tokenizer.model` file.

    Raises:
        UnsupportedModelError: Another kind of model, or normalization that is not implemented.
        WeightsError: The file is damaged.
    """
    model = SentencePieceModel()
    kind = 1
    remove_extra, escape = True, True
    for number, value in _fields(path.read_bytes(), path):
        if number == 1:
            _add_piece(model, _bytes(value, path), path)
        elif number == 2:
            for inner, item in _fields(_bytes(value, path), path):
                if inner == 3:
                    kind = _integer(item, path)
                elif inner in (40, 41, 42, 43):
                    name = {40: "unknown_id", 41: "bos_id", 42: "eos_id", 43: "pad_id"}[inner]
                    setattr(model, name, _signed(_integer(item, path)))
        elif number == 3:
            for inner, item in _fields(_bytes(value, path), path):
                if inner == 2:
                    model.charsmap = _bytes(item, path)
                elif inner == 3:
                    model.add_dummy_prefix = bool(_integer(item, path))
                elif inner == 4:
                    remove_extra = bool(_integer(item, path))
                elif inner == 5:
                    escape = bool(_integer(item, path))
    if not model.tokens:
        raise WeightsError("holds no pieces: not a SentencePiece model", file=path)
    if kind != _BPE:
        raise UnsupportedModelError("trainer_spec.model_type", kind, file=path, supported="2 (BPE)")
    if remove_extra:
        raise UnsupportedModelError("normalizer_spec.remove_extra_whitespaces", True, file=path, supported="false")
    if not escape:
        raise UnsupportedModelError("normalizer_spec.escape_whitespaces", False, file=path, supported="true")
    for name in ("unknown_id", "bos_id", "eos_id", "pad_id"):
        if getattr(model, name) >= len(model.tokens):
            raise WeightsError(f"{name} {getattr(model, name)} is outside of {len(model.tokens)} pieces", file=path)
    return model


def _add_piece(model: SentencePieceModel, data: bytes, path: Path) -> None:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(data, path):
        if number == 1:
            try:
                text = _bytes(value, path).decode("utf-8")
            except UnicodeDecodeError as error:
                raise WeightsError(f"piece {len(model.tokens)} is not UTF-8", file=path) from error
        elif number == 2:
            raw = _bytes(value, path)
            if len(raw) != 4:
                raise WeightsError(f"the score of piece {len(model.tokens)} is not a float", file=path)
            score = struct.unpack("<f", raw)[0]
        elif number == 3:
            kind = _integer(value, path)
    if not 1 <= kind <= 6 or not math.isfinite(score):
        raise WeightsError(f"piece {len(model.tokens)} has kind {kind}, score {score}", file=path)
    if kind == _BYTE_KIND and not _BYTE_PIECE.fullmatch(text):
        raise WeightsError(f"piece {len(model.tokens)} is marked as a byte but reads {text!r}", file=path)
    model.tokens.append(text)
    model.scores.append(score)
    model.types.append(kind)


def _fields(data: bytes, path: Path) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of one message: integers, or bytes (fixed-width values too)."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at, path)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at, path)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at, path)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise WeightsError(f"wire type {wire} is not one of a SentencePiece model", file=path, offset=at)
        if size > end - at:
            raise WeightsError(f"a field of {size} bytes goes beyond the end", file=path, offset=at)
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int, path: Path) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise WeightsError("ends within a number", file=path, offset=at)
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise WeightsError("holds a number of more than 64 bits", file=path, offset=at)


def _bytes(value: int | bytes, path: Path) -> bytes:
    if isinstance(value, int):
        raise WeightsError("a field has another type than in a SentencePiece model", file=path)
    return value


def _integer(value: int | bytes, path: Path) -> int:
    if not isinstance(value, int):
        raise WeightsError("a field has another type than in a SentencePiece model", file=path)
    return value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
