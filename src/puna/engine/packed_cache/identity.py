"""Two names of a model's weights: what they are, and which files they were in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from puna import _native
from puna.graph.weights.mapping import MappedWeights
from puna.graph.weights.weight_data import WeightData

__all__ = ["WeightDigest", "content_id", "source_key"]


class WeightDigest(NamedTuple):
    """A weight and the digest of its stored bytes."""

    name: str
    format: str
    shape: tuple[int, ...]
    digest: bytes


def content_id(weights: Iterable[WeightDigest]) -> str:
    """The identity of some weights: 64 hex digits, a function of names, formats, shapes and stored bytes alone.

    It is the same wherever the files lie, and whatever kernels run.
    """
    digest = hashlib.blake2b(digest_size=32)
    for weight in sorted(weights):
        digest.update(repr((weight.name, weight.format, weight.shape)).encode())
        digest.update(weight.digest)
    return digest.hexdigest()


def source_key(weights: Mapping[str, WeightData]) -> str | None:
    """What a later start knows weights by without reading them: 64 hex digits.

    A function of the files' device, inode, size, time of modification and header, and of which part of which file each
    weight is; of a quantized layer's weight also of how it is decoded. None when a weight is in no file, because it
    was converted or put together while loading.
    """
    files: dict[int, tuple[int, MappedWeights]] = {}
    parts: list[tuple[Any, ...]] = []
    for name, weight in weights.items():
        for part in weight.parts:
            source = part.source
            if source is None:
                return None
            number, _ = files.setdefault(id(source), (len(files), source))
            offset = _address(part.array) - _address(source.array)
            parts.append((name, weight.format, weight.shape, weight.recipe, part.format, part.shape, number, offset))
    stamps = [(*file.stamp, _native.blake2bp(file.data[: file.header_bytes]).hex()) for _, file in files.values()]
    return hashlib.blake2b(repr((stamps, parts)).encode(), digest_size=32).hexdigest()


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])
