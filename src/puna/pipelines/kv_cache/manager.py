"""The manager of the paged KV cache: `match`, `reserve`, `inputs`, `commit`, `release`, and `fork`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from puna.driver import Buffer
from puna.errors import InsufficientBlocksError
from puna.nn.kv_cache import KVCacheInputs, KVCacheInputsPerDevice, KVCacheParams
from puna.pipelines.kv_cache.blocks import ROOT, BlockCounts, BlockPool
from puna.pipelines.kv_cache.durable import BlockStore, StoreCounts
from puna.pipelines.kv_cache.hashing import BlockHash, BlockHasher, BlockID, CacheKey

SequenceID: TypeAlias = Hashable
"""Who holds pages: a request, or one of several continuations of it."""


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """The longest cached beginning of a request.

    Attributes:
        blocks: Its full blocks in the cache, in order.
        links: Their hashes and serial numbers.
        num_tokens: How many tokens these hold.
        stored: Hashes of the blocks behind them that only the store on disk has.
    """

    blocks: tuple[BlockID, ...] = ()
    links: tuple[tuple[BlockHash, int], ...] = ()
    num_tokens: int = 0
    stored: tuple[BlockHash, ...] = ()


class CacheRow(NamedTuple):
    """One request in a step.

    Attributes:
        sequence: Who holds the pages.
        num_cached: Its tokens that are in the cache.
        num_new: Its tokens that the step adds.
        request_length: The length that decides its rotary frequencies, or None where no length does.
    """

    sequence: SequenceID
    num_cached: int
    num_new: int
    request_length: int | None = None


@dataclass(slots=True)
class _Claim:
    """What a sequence holds.

    Attributes:
        key: What its blocks are found by.
        blocks: Its blocks in order.
        links: Hash and serial number of those that are full and published.
        state: Another object whenever the blocks are others: by it tables are known to be the same.
    """

    key: CacheKey
    blocks: list[BlockID] = field(default_factory=list)
    links: list[tuple[BlockHash, int]] = field(default_factory=list)
    state: object = field(default_factory=object)


_NOTHING: Final = _Claim(CacheKey())


class PagedKVCacheManager:
    """Owns the memory of one replica's KV cache and hands out its pages.

    A page holds `page_size` tokens of one sequence, in all layers. Pages of a sequence need not lie side by side; a
    table names them in order. One more page than the pool has, the null page, stands in the unused entries of tables,
    so that a wrong read finds zeros and not another request's keys. A page that several sequences hold is never
    written: a fork that goes on gets a copy. Not safe for several threads: the engine's thread owns it.

    Args:
        params: Sizes and element type; replicas have a manager each.
        num_blocks: Pages of the pool, without the null page.
        store: Where full pages are kept beyond the life of the process; None: nowhere.

    Raises:
        ValueError: No page, or several devices per replica.
    """

    def __init__(self, params: KVCacheParams, num_blocks: int, store: BlockStore | None = None) -> None:
        if params.tensor_parallel_degree != 1:
            raise ValueError(f"the KV cache is kept on one device, {params.tensor_parallel_degree} were given")
        self._params = params
        self._page_size = params.page_size
        self._pool = BlockPool(num_blocks)
        self._null_block = num_blocks
        self._claims: dict[SequenceID, _Claim] = {}
        self._store = store
        self._hasher = BlockHasher(None if store is None else store.hash_key)
        # Pages come from the operating system zeroed and untouched: memory is used as requests come.
        self._pages = np.zeros((num_blocks + 1, *params.shape_per_block), dtype=params.dtype.to_numpy())
        self._planes: list[npt.NDArray[Any]] = [self._pages]  # one entry per page in each of them
        self._scales: Buffer | None = None
        if params.kvcache_quant_config is not None and params.shape_per_scale_block is not None:
            dtype = params.kvcache_quant_config.scale_dtype.to_numpy()
            scales = np.zeros((num_blocks + 1, *params.shape_per_scale_block), dtype=dtype)
            self._planes.append(scales)
            self._scales = Buffer.from_numpy(scales)
        self._blocks = Buffer.from_numpy(self._pages)
        self._table = Buffer.from_numpy(np.zeros((0, 1), dtype=np.uint32))
        self._table_states: list[object] = []

    @property
    def params(self) -> KVCacheParams:
        """Sizes and element type of the cache."""
        return self._params

    @property
    def max_tokens(self) -> int:
        """The most tokens that a single request can have."""
        return self._pool.total * self._page_size

    def counts(self) -> BlockCounts:
        """How many pages there are, free, and free but findable."""
        return self._pool.counts()

    def store_counts(self) -> StoreCounts | None:
        """What the store did so far; replicas share it. None: there is none."""
        return None if self._store is None else self._store.counts()

    def contains(self, sequence: SequenceID) -> bool:
        """Whether the sequence holds pages."""
        return sequence in self._claims

    def match(self, tokens: npt.NDArray[np.int64], key: CacheKey) -> PrefixMatch:
        """Finds the longest beginning of `tokens` (int64 `[n]`) that is cached under `key`.

        Only full pages count, and the last token never does: a step has to compute at least one. Nothing is taken; the
        result holds until the next `reserve`.
        """
        if not self._params.enable_prefix_caching:
            return PrefixMatch()
        size = self._page_size
        parent, serial = self._hasher.root(key), ROOT
        blocks: list[BlockID] = []
        links: list[tuple[BlockHash, int]] = []
        stored: list[BlockHash] = []
        for begin in range(0, (len(tokens) - 1) // size * size, size):
            page = tokens[begin : begin + size]
            parent = self._hasher.block(parent, page)
            found = None if stored else self._pool.find(parent, page.tobytes(), serial)
            if found is not None:
                serial = found.serial
                blocks.append(found.block)
                links.append((parent, serial))
            elif self._store is not None and self._store.contains(parent):
                stored.append(parent)
            else:
                break
        return PrefixMatch(tuple(blocks), tuple(links), len(blocks) * size, tuple(stored))

    def has_room(self, num_tokens: int, prefix: PrefixMatch, watermark: float = 1.0) -> bool:
        """Whether a request of `num_tokens` tokens could begin and leave the pool filled to at most `watermark`."""
        needed = self._params.num_blocks_for(num_tokens) - len(prefix.blocks)
        needed += self._pool.num_free_among(prefix.blocks)
        free, total = self._pool.num_free, self._pool.total
        return needed <= free and total - free + needed <= watermark * total

    def reserve(
        self,
        sequence: SequenceID,
        num_tokens: int,
        key: CacheKey,
        prefix: PrefixMatch | None = None,
        num_cached: int = 0,
    ) -> None:
        """Makes sure that the sequence has pages of its own to write to, for `num_tokens` tokens in all.

        Args:
            sequence: Who needs them; one that holds no pages yet begins here.
            num_tokens: Tokens that are cached plus tokens that steps will add.
            key: What its pages are found by; the same as long as it holds any.
            prefix: What `match` found, for a sequence that begins.
            num_cached: Its tokens that are in the cache. The next one is written behind them: a page that is open there
                and that others hold too is copied.

        Raises:
            InsufficientBlocksError: Too few pages are free; the sequence holds what it held before.
            ValueError: The key differs from the one of the pages that it holds, or it takes a prefix too late.
        """
        claim = self._claims.get(sequence)
        if claim is not None and prefix is None and claim.key is key and self._suffices(claim, num_tokens, num_cached):
            return  # nearly always, and for every request of every step
        if claim is None:
            claim = _Claim(key)
        elif claim.key != key or prefix:
            raise ValueError(f"request {sequence} holds pages under another key; release them first")
        if num_cached % self._page_size:
            self._make_writable(claim, num_cached // self._page_size)
        shared = list(prefix.blocks) if prefix else []
        missing = self._params.num_blocks_for(num_tokens) - len(claim.blocks) - len(shared)
        if missing > 0 or shared or not claim.blocks:
            self._pool.share(shared)
            try:
                taken = self._pool.take(max(missing, 0))
            except InsufficientBlocksError:
                self._pool.drop(shared)
                raise
            claim.blocks += shared + taken
            claim.state = object()
            claim.links += prefix.links if prefix else ()
            self._claims[sequence] = claim

    def restore(self, sequence: SequenceID, tokens: npt.NDArray[np.int64], prefix: PrefixMatch) -> int:
        """Reads what only the store has of a prefix into the pages that were reserved for it.

        Returns:
            How many tokens behind `prefix.num_tokens` are cached by that: fewer than promised where a file is damaged.
        """
        claim = self._claims[sequence]
        assert self._store is not None or not prefix.stored
        size = self._page_size
        first = len(prefix.blocks)
        for index, block_hash in enumerate(prefix.stored, first):
            planes = [plane[claim.blocks[index]] for plane in self._planes]
            assert self._store is not None
            if not self._store.load(block_hash, tokens[: (index + 1) * size], planes):
                break
            self._publish(claim, index, block_hash, tokens)
        return (len(claim.links) - first) * size

    def fork(self, parent: SequenceID, child: SequenceID, num_computed: int) -> None:
        """Lets a new sequence hold the pages of another's first `num_computed` tokens.

        A page in which both go on is copied when one of them does.

        Raises:
            ValueError: The parent holds no pages for these tokens, or the child holds pages already.
        """
        claim = self._claims.get(parent)
        size = self._page_size
        count = self._params.num_blocks_for(num_computed)
        if claim is None or count > len(claim.blocks) or child in self._claims:
            raise ValueError(f"{parent} holds no pages for {num_computed} tokens, or {child} holds some already")
        blocks = claim.blocks[:count]
        self._pool.share(blocks)
        # The parent may have filled and published the last of them since: for the child it is open all the same.
        self._claims[child] = _Claim(claim.key, blocks, claim.links[: num_computed // size])

    def inputs(self, rows: Sequence[CacheRow], num_steps: int = 1) -> KVCacheInputs[Buffer, Buffer]:
        """The cache inputs of a step over `rows`, in their order; `num_steps` forward passes will be made.

        Raises:
            ValueError: A sequence has fewer pages than the step writes to, or one that others hold or can find.
        """
        claims = [self._claims.get(row.sequence, _NOTHING) for row in rows]
        for row, claim in zip(rows, claims, strict=True):
            self._require_writable(row, claim.blocks, num_steps)
        cached = np.array([row.num_cached for row in rows], dtype=np.uint32)
        new = np.array([row.num_new for row in rows], dtype=np.uint32)
        most_new = int(new.max(initial=0))
        most_total = int((cached + new).max(initial=0))
        growth = min(most_new, 1)
        max_lengths = [(growth if step else most_new, most_total + step * growth) for step in range(num_steps)]
        lengths = [row.request_length for row in rows if row.request_length is not None]
        if lengths and len(lengths) != len(rows):
            raise ValueError("either all requests of a step state the length that decides their frequencies, or none")
        device = KVCacheInputsPerDevice(
            kv_blocks=self._blocks,
            cache_lengths=Buffer.from_numpy(cached),
            lookup_table=self._table_of(claims),
            max_lengths=Buffer.from_numpy(np.array(max_lengths, dtype=np.uint32).reshape(num_steps, 2)),
            kv_scales=self._scales,
            request_lengths=Buffer.from_numpy(np.array(lengths, dtype=np.uint32)) if lengths else None,
        )
        return KVCacheInputs([device])

    def has_filled_page(self, sequence: SequenceID, num_computed: int) -> bool:
        """Whether `commit` would publish anything."""
        return num_computed // self._page_size > len(self._claims[sequence].links)

    def commit(self, sequence: SequenceID, tokens: npt.NDArray[np.int64], num_computed: int) -> None:
        """Publishes the pages that are full by now, so that other requests can find them.

        Args:
            sequence: Who holds them.
            tokens: All its tokens, int64 `[n]`.
            num_computed: How many of them have their keys and values in the cache.
        """
        if not self._params.enable_prefix_caching:
            return
        claim = self._claims[sequence]
        size = self._page_size
        for index in range(len(claim.links), num_computed // size):
            parent = claim.links[-1][0] if claim.links else self._hasher.root(claim.key)
            block_hash = self._hasher.block(parent, tokens[index * size : (index + 1) * size])
            self._publish(claim, index, block_hash, tokens)
            if self._store is not None:
                planes = [plane[claim.blocks[index]] for plane in self._planes]
                self._store.put(block_hash, tokens[: (index + 1) * size], planes)

    def release(self, sequence: SequenceID) -> None:
        """Gives the sequence's pages back. Published ones can still be found until they are needed for something else.

        Raises:
            ValueError: It holds none.
        """
        claim = self._claims.pop(sequence, None)
        if claim is None:
            raise ValueError(f"request {sequence} holds no pages")
        self._pool.drop(claim.blocks)

    def reset(self) -> None:
        """Forgets all cached prefixes. What requests hold they keep."""
        self._pool.forget_all()
        for claim in self._claims.values():
            claim.links.clear()

    def check(self) -> None:
        """Asserts that every page is either free or held by exactly the sequences that count it."""
        self._pool.check([claim.blocks for claim in self._claims.values()])

    def _publish(self, claim: _Claim, index: int, block_hash: BlockHash, tokens: npt.NDArray[np.int64]) -> None:
        size = self._page_size
        page = tokens[index * size : (index + 1) * size].tobytes()
        parent = claim.links[-1][1] if claim.links else ROOT
        published = self._pool.publish(claim.blocks[index], block_hash, page, parent)
        if published.block != claim.blocks[index]:
            claim.blocks[index] = published.block
            claim.state = object()
        claim.links.append((block_hash, published.serial))

    def _suffices(self, claim: _Claim, num_tokens: int, num_cached: int) -> bool:
        """Whether there are pages for all tokens, and the next one may be written."""
        size = self._page_size
        if num_tokens > len(claim.blocks) * size:
            return False
        return num_cached % size == 0 or self._pool.is_writable(claim.blocks[num_cached // size])

    def _make_writable(self, claim: _Claim, index: int) -> None:
        """Copies a page that others hold too, or that was published full by the sequence that this one forked from."""
        source = claim.blocks[index]
        if not self._pool.is_writable(source):
            (copy,) = self._pool.take(1)
            for plane in self._planes:
                plane[copy] = plane[source]
            self._pool.drop([source])
            claim.blocks[index] = copy
            claim.state = object()

    def _table_of(self, claims: Sequence[_Claim]) -> Buffer:
        """The pages of each sequence, uint32 `[B, max_pages]`; the last step's table if it is the same."""
        states = [claim.state for claim in claims]
        if states != self._table_states:
            width = max((len(claim.blocks) for claim in claims), default=1)
            table = np.full((len(claims), width), self._null_block, dtype=np.uint32)
            for index, claim in enumerate(claims):
                table[index, : len(claim.blocks)] = claim.blocks
            self._table, self._table_states = Buffer.from_numpy(table), states
        return self._table

    def _require_writable(self, row: CacheRow, blocks: Sequence[BlockID], num_steps: int) -> None:
        size = self._page_size
        end = row.num_cached + row.num_new + num_steps - 1
        if end > len(blocks) * size:
            raise ValueError(f"request {row.sequence} has pages for {len(blocks) * size} tokens, the step needs {end}")
        for block in blocks[row.num_cached // size : -(-end // size)]:
            if not self._pool.is_writable(block):
                raise ValueError(f"request {row.sequence} would write to block {block}, which others hold or can find")
