"""The identity of a full block: a keyed chain of hashes over everything that decides what its keys and values are."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final, NewType

import numpy as np
import numpy.typing as npt

BlockID = NewType("BlockID", int)
"""Index of a page in the pool."""

BlockHash = NewType("BlockHash", bytes)
"""Digest of a block's contents and of everything before it."""

_DIGEST_BYTES: Final = 16
_KEY_BYTES: Final = 32


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


class BlockHasher:
    """Makes the chain of hashes: BLAKE2b under a secret key, so that nobody can prepare prompts whose hashes collide.

    Args:
        key: Secret of up to 64 bytes; None: a fresh one. Blocks on disk need the same key in each process.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = secrets.token_bytes(_KEY_BYTES) if key is None else key

    def root(self, key: CacheKey) -> BlockHash:
        """The hash that stands before the first block."""
        digest = hashlib.blake2b(key=self._key, digest_size=_DIGEST_BYTES, person=b"puna-kv-root")
        for part in (str(key.rope_regime), key.adapter, key.salt):
            # Lengths go in too, so that no two keys can be written as the same bytes.
            data = b"" if part is None else part.encode("utf-8", "surrogatepass")
            digest.update((-1 if part is None else len(data)).to_bytes(8, "little", signed=True) + data)
        return BlockHash(digest.digest())

    def block(self, parent: BlockHash, tokens: npt.NDArray[np.int64]) -> BlockHash:
        """The hash of a block from its parent's and its own tokens (int64 `[page_size]`)."""
        digest = hashlib.blake2b(parent, key=self._key, digest_size=_DIGEST_BYTES, person=b"puna-kv-block")
        digest.update(tokens.astype("<i8", copy=False).tobytes())
        return BlockHash(digest.digest())
