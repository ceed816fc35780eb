"""The pool of blocks: reference counts, the line of free blocks, and the index of full blocks by hash."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from puna.errors import InsufficientBlocksError
from puna.pipelines.kv_cache.hashing import BlockHash, BlockID

_UNPUBLISHED: Final = -1

ROOT: Final = 0
"""The serial number that stands before a request's first block."""


class PublishedBlock(NamedTuple):
    """A findable block.

    Attributes:
        block: The block.
        serial: Number of this publication: never given twice, so it stands for the block's contents and all before it.
    """

    block: BlockID
    serial: int


@dataclass(frozen=True, slots=True)
class BlockCounts:
    """How the blocks of a pool are used.

    Attributes:
        total: All blocks, without the null page.
        free: Blocks that no request holds.
        cached: Free blocks that can still be found by hash.
    """

    total: int
    free: int
    cached: int

    @property
    def used(self) -> int:
        """Blocks that requests hold."""
        return self.total - self.free


@dataclass(slots=True)
class _Block:
    references: int = 0
    hash: BlockHash | None = None
    tokens: bytes = b""
    parent: int = _UNPUBLISHED
    serial: int = _UNPUBLISHED


class BlockPool:
    """Counts who uses which block.

    A block that nobody uses stays findable by its hash until it is needed for something else; the least recently
    freed one goes first. Blocks without a hash are useless to anybody and go before all others.

    A hash only leads to a block; whether it is the right one is decided by its tokens and by the publication that it
    continues. So hashes that collide cost a hit and never give a wrong one.

    Args:
        num_blocks: How many there are, at least 1.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"a KV cache needs at least one block, got {num_blocks}")
        self._blocks = [_Block() for _ in range(num_blocks)]
        self._free: OrderedDict[BlockID, None] = OrderedDict((BlockID(index), None) for index in range(num_blocks))
        self._by_hash: dict[BlockHash, BlockID] = {}
        self._num_cached = 0
        self._last_serial = ROOT

    @property
    def total(self) -> int:
        """All blocks."""
        return len(self._blocks)

    @property
    def num_free(self) -> int:
        """Blocks that can be taken."""
        return len(self._free)

    def counts(self) -> BlockCounts:
        """How many blocks there are, free, and free but findable."""
        return BlockCounts(len(self._blocks), len(self._free), self._num_cached)

    def num_free_among(self, blocks: Sequence[BlockID]) -> int:
        """How many of the blocks nobody holds."""
        return sum(1 for index in blocks if self._blocks[index].references == 0)

    def is_writable(self, index: BlockID) -> bool:
        """Whether one request holds the block, and nobody can find it."""
        block = self._blocks[index]
        return block.references == 1 and block.hash is None

    def take(self, count: int) -> list[BlockID]:
        """Takes `count` free blocks, forgetting what they held.

        Raises:
            InsufficientBlocksError: There are fewer; nothing was taken.
        """
        if count > len(self._free):
            raise InsufficientBlocksError(count, len(self._free), len(self._blocks))
        taken = []
        for _ in range(count):
            index, _unused = self._free.popitem(last=False)
            if self._blocks[index].hash is not None:
                self._num_cached -= 1
                self._forget(index)
            self._blocks[index].references = 1
            taken.append(index)
        return taken

    def share(self, blocks: Sequence[BlockID]) -> None:
        """Adds a user to each of the blocks, which may be free ones that were found by hash."""
        for index in blocks:
            block = self._blocks[index]
            if block.references == 0:
                del self._free[index]
                if block.hash is not None:
                    self._num_cached -= 1
            block.references += 1

    def drop(self, blocks: Sequence[BlockID]) -> None:
        """Takes a user away from each of the blocks.

        They are given back from the last to the first, so that the end of a prefix is forgotten before its beginning.
        """
        for index in reversed(blocks):
            block = self._blocks[index]
            assert block.references > 0, f"block {index} was released more often than it was taken"
            block.references -= 1
            if block.references == 0:
                self._free[index] = None
                if block.hash is None:
                    self._free.move_to_end(index, last=False)
                else:
                    self._num_cached += 1

    def find(self, block_hash: BlockHash, tokens: bytes, parent: int) -> PublishedBlock | None:
        """The block with this hash, exactly these tokens, and this publication before it; None: there is no such."""
        index = self._by_hash.get(block_hash)
        if index is None:
            return None
        block = self._blocks[index]
        return PublishedBlock(index, block.serial) if block.tokens == tokens and block.parent == parent else None

    def publish(self, index: BlockID, block_hash: BlockHash, tokens: bytes, parent: int) -> PublishedBlock:
        """Makes a full block findable, and returns the block to use from now on.

        When an equal block is findable already, that one is shared and `index` dropped: the contents are the same bits.
        An unequal one with the same hash makes room: it collides, or continues a block that was forgotten since.
        """
        existing = self.find(block_hash, tokens, parent)
        if existing is not None:
            if existing.block != index:
                self.share([existing.block])
                self.drop([index])
            return existing
        other = self._by_hash.get(block_hash)
        if other is not None:
            if self._blocks[other].references == 0:
                self._num_cached -= 1
                self._free.move_to_end(other, last=False)
            self._forget(other)
        self._last_serial += 1
        block = self._blocks[index]
        assert block.hash is None and block.references > 0, f"block {index} is published a second time"
        block.hash, block.tokens, block.parent, block.serial = block_hash, tokens, parent, self._last_serial
        self._by_hash[block_hash] = index
        return PublishedBlock(index, block.serial)

    def forget_all(self) -> None:
        """Makes no block findable any more."""
        for index in list(self._by_hash.values()):
            self._forget(index)
        self._num_cached = 0

    def check(self, users: Sequence[Sequence[BlockID]]) -> None:
        """Asserts that the books balance with what the requests hold."""
        held: dict[BlockID, int] = {}
        for blocks in users:
            assert len(set(blocks)) == len(blocks), f"a request holds a block twice: {blocks}"
            for index in blocks:
                held[index] = held.get(index, 0) + 1
        for position, block in enumerate(self._blocks):
            index = BlockID(position)
            assert block.references == held.get(index, 0), f"block {index}: {block.references} references"
            assert (block.references == 0) == (index in self._free), f"block {index} is on the wrong side"
            assert block.hash is None or self._by_hash[block.hash] == index, (
                f"block {index} is not the one found by its hash"
            )
        cached = sum(1 for index in self._by_hash.values() if index in self._free)
        assert cached == self._num_cached, f"{cached} free blocks can be found, {self._num_cached} were counted"

    def _forget(self, index: BlockID) -> None:
        block = self._blocks[index]
        if block.hash is not None:
            del self._by_hash[block.hash]
            block.hash, block.tokens, block.parent, block.serial = None, b"", _UNPUBLISHED, _UNPUBLISHED
