"""The identity of a full block: a chain of hashes over everything that decides what its keys and values are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, NewType

import numpy as np
import numpy.typing as npt

BlockID = NewType("BlockID", int)
"""Index of a page in the pool."""

BlockHash = NewType("BlockHash", bytes)
"""Digest of a block's contents and of everything before it."""

_DIGEST_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class CacheKey:
    """What decides the keys and values of a request besides its tokens.

    Attributes:
        rope_regime: `RotaryEmbedding.regime` of the request's length: keys under one set of frequencies are of no use
            under another.
        adapter: Identity of the adapter whose weights made them, or None.
        salt: A tenant's secret, which keeps its blocks from being found by others, or None.
    """

    rope_regime: int = 0
    adapter: str | None = None
    salt: str | None = None

    def root(self) -> BlockHash:
        """The hash that stands before the first block."""
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES, person=b"puna-kv-root")
        for part in (str(self.rope_regime), self.adapter, self.salt):
            # Lengths go in too, so that no two keys can be written as the same bytes.
            data = b"" if part is None else part.encode("utf-8")
            digest.update((-1 if part is None else len(data)).to_bytes(8, "little", signed=True) + data)
        return BlockHash(digest.digest())


def hash_block(parent: BlockHash, tokens: npt.NDArray[np.int64]) -> BlockHash:
    """The hash of a block from its parent's and its own tokens (int64 `[page_size]`)."""
    digest = hashlib.blake2b(parent, digest_size=_DIGEST_BYTES, person=b"puna-kv-block")
    digest.update(tokens.astype("<i8", copy=False).tobytes())
    return BlockHash(digest.digest())
