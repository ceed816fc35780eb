"""BLAKE2bp against hashlib's BLAKE2b in tree mode, and the digests that packing notes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from puna import _native
from support import ggml_blocks

LEAVES, BLOCK = 4, 128


def blake2bp(data: bytes) -> bytes:
    """As the paper defines it: blocks go to the leaves in turn."""
    tree = {"fanout": LEAVES, "depth": 2, "leaf_size": 0, "inner_size": 64, "digest_size": 64}
    root = hashlib.blake2b(node_offset=0, node_depth=1, last_node=True, **tree)
    for leaf in range(LEAVES):
        begins = range(leaf * BLOCK, len(data), LEAVES * BLOCK)
        mine = b"".join(data[begin : begin + BLOCK] for begin in begins)
        last = leaf == LEAVES - 1
        root.update(hashlib.blake2b(mine, node_offset=leaf, node_depth=0, last_node=last, **tree).digest())
    return root.digest()


@pytest.mark.parametrize(
    "size", [0, 1, 127, 128, 129, 256, 384, 385, 511, 512, 513, 640, 1023, 1024, 1025, 1536, 2047, 5000, 65536, 70001]
)
def test_is_blake2bp(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    assert _native.blake2bp(data) == blake2bp(data)


def test_official_vector() -> None:
    # The first of the authors' known answers without a key is that of no bytes.
    assert _native.blake2bp(b"").hex().startswith("b5ef811a8038f70b")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("format", "rows", "cols"), [("Q4_K", 37, 256), ("Q8_0", 999, 512), ("F32", 100, 700)])
def test_the_digest_of_a_matrix_is_that_of_its_pieces(format: str, rows: int, cols: int, threads: int) -> None:
    data = ggml_blocks.random_blocks(np.random.default_rng(1), format, rows, cols)
    row_bytes = data.nbytes // rows
    piece = (65536 // row_bytes // 16 + 1) * 16
    parts = [data[first : first + piece].tobytes() for first in range(0, rows, piece)]
    matrix = _native.PackedMatrix(format, data, rows, cols, threads=threads)
    assert matrix.digest == blake2bp(b"".join(blake2bp(part) for part in parts))
    data.reshape(-1).view(np.uint8)[-1] ^= 1
    assert _native.PackedMatrix(format, data, rows, cols, threads=threads).digest != matrix.digest
