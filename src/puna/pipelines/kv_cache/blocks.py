"""The pool of blocks: reference counts, the line of free blocks, and the index of full blocks by hash."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from puna.errors import InsufficientBlocksError
from puna.pipelines.kv_cache.hashing import BlockHash, BlockID


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


class BlockPool:
    """Counts who uses which block.

    A block that nobody uses stays findable by its hash until it is needed for something else; the least recently
    freed one goes first. Blocks without a hash are useless to anybody and go before all others.

    Args:
        num_blocks: How many there are, at least 1.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"a KV cache needs at least one block, got {num_blocks}")
        self._blocks = [_Block() for _ in range(num_blocks)]
        self._free: OrderedDict[BlockID, None] = OrderedDict((BlockID(index), None) for index in range(num_blocks))
        self._by_hash: dict[BlockHash, BlockID] = {}

    def counts(self) -> BlockCounts:
        """How many blocks there are, free, and free but findable."""
        cached = sum(1 for block in self._by_hash.values() if block in self._free)
        return BlockCounts(len(self._blocks), len(self._free), cached)

    @property
    def num_free(self) -> int:
        """Blocks that can be taken."""
        return len(self._free)

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

    def find(self, block_hash: BlockHash, tokens: bytes) -> BlockID | None:
        """The block with this hash and exactly these tokens, or None; equal hashes of unequal tokens do not count."""
        index = self._by_hash.get(block_hash)
        return index if index is not None and self._blocks[index].tokens == tokens else None

    def publish(self, index: BlockID, block_hash: BlockHash, tokens: bytes) -> BlockID:
        """Makes a full block findable, and returns the block to use from now on.

        When an equal block is findable already, that one is shared and `index` dropped: the contents are the same bits.
        """
        existing = self.find(block_hash, tokens)
        if existing == index:
            return index
        if existing is not None:
            self.share([existing])
            self.drop([index])
            return existing
        if block_hash not in self._by_hash:  # a collision keeps the first block findable
            self._by_hash[block_hash] = index
            self._blocks[index].hash = block_hash
            self._blocks[index].tokens = tokens
        return index

    def forget_all(self) -> None:
        """Makes no block findable any more."""
        for index in list(self._by_hash.values()):
            self._forget(index)

    def check(self, users: Sequence[Sequence[BlockID]]) -> None:
        """Asserts that the books balance with what the requests hold."""
        held: dict[BlockID, int] = {}
        for blocks in users:
            for index in blocks:
                held[index] = held.get(index, 0) + 1
        for position, block in enumerate(self._blocks):
            index = BlockID(position)
            assert block.references == held.get(index, 0), f"block {index}: {block.references} references"
            assert (block.references == 0) == (index in self._free), f"block {index} is on the wrong side"
            assert block.hash is None or self._by_hash[block.hash] == index, (
                f"block {index} is not the one found by its hash"
            )

    def _forget(self, index: BlockID) -> None:
        block = self._blocks[index]
        if block.hash is not None:
            del self._by_hash[block.hash]
            block.hash = None
            block.tokens = b""
