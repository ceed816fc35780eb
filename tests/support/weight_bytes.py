"""Weight files byte by byte, so that a test can break any single field."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

U32, I32, F32, BOOL, STRING, LIST, U64 = 4, 5, 6, 7, 8, 9, 10
TYPE_F32, TYPE_F16, TYPE_Q4_0, TYPE_Q4_K = 0, 1, 2, 12


def text(value: str | bytes, length: int | None = None) -> bytes:
    """A GGUF string; `length` overrides the true one."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A GGUF key-value pair."""
    return text(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    """A pair with a 32-bit number."""
    return pair(key, U32, struct.pack("<I", value))


def list_of(key: str, kind: int, count: int, values: bytes) -> bytes:
    """A pair with a list."""
    return pair(key, LIST, struct.pack("<IQ", kind, count) + values)


def tensor(
    name: str | bytes, shape: Sequence[int] = (4, 8), kind: int = TYPE_F32, offset: int = 0, rank: int | None = None
) -> bytes:
    """A GGUF tensor description; `shape` outermost first."""
    axes = b"".join(struct.pack("<Q", extent) for extent in reversed(shape))
    axes = struct.pack("<I", len(shape) if rank is None else rank) + axes
    return text(name) + axes + struct.pack("<IQ", kind, offset)


def gguf(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_tensors: int | None = None,
    num_pairs: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A GGUF file."""
    count = len(tensors) if num_tensors is None else num_tensors
    head = magic + struct.pack("<IQQ", version, count, len(pairs) if num_pairs is None else num_pairs)
    head += b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file; a header that is no text is written as JSON."""
    raw = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: str, shape: Sequence[int], begin: int, end: int) -> dict[str, Any]:
    """A safetensors header entry."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
