"""The manager of the paged KV cache: `match`, `reserve`, `inputs`, `commit`, `release`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from puna.driver import Buffer
from puna.errors import InsufficientBlocksError
from puna.nn.kv_cache import KVCacheInputs, KVCacheInputsPerDevice, KVCacheParams
from puna.pipelines.kv_cache.blocks import BlockCounts, BlockPool
from puna.pipelines.kv_cache.hashing import BlockHash, BlockID, CacheKey, hash_block
from puna.pipelines.request import RequestID


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """The longest cached beginning of a request: its full blocks in order, and how many tokens they hold."""

    blocks: tuple[BlockID, ...] = ()
    hashes: tuple[BlockHash, ...] = ()
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class CacheRow:
    """One request in a step.

    Attributes:
        request_id: The request.
        num_cached: Its tokens that are in the cache.
        num_new: Its tokens that the step adds.
        request_length: The length that decides its rotary frequencies, or None where no length does.
    """

    request_id: RequestID
    num_cached: int
    num_new: int
    request_length: int | None = None


@dataclass(slots=True)
class _Claim:
    """What a request holds: its blocks in order; the hashes of those that are full and published."""

    key: CacheKey
    blocks: list[BlockID] = field(default_factory=list)
    hashes: list[BlockHash] = field(default_factory=list)


class PagedKVCacheManager:
    """Owns the memory of the KV cache and hands out its pages.

    A page holds `page_size` tokens of one request, in all layers. Pages of a request need not lie side by side; a table
    names them in order. One more page than the pool has, the null page, stands in the unused entries of tables, so
    that a wrong read finds zeros and not another request's keys. Not safe for several threads: the engine's thread
    owns it.

    Args:
        params: Sizes and element type; one device.
        num_blocks: Pages of the pool, without the null page.

    Raises:
        ValueError: No page, or several devices.
    """

    def __init__(self, params: KVCacheParams, num_blocks: int) -> None:
        if params.n_devices != 1:
            raise ValueError(f"the KV cache is kept on one device, {params.n_devices} were given")
        self._params = params
        self._pool = BlockPool(num_blocks)
        self._null_block = num_blocks
        self._claims: dict[RequestID, _Claim] = {}
        # Pages come from the operating system zeroed and untouched: memory is used as requests come.
        pages = np.zeros((num_blocks + 1, *params.shape_per_block), dtype=params.dtype.to_numpy())
        self._pages = Buffer.from_numpy(pages)

    @property
    def params(self) -> KVCacheParams:
        """Sizes and element type of the cache."""
        return self._params

    @property
    def max_tokens(self) -> int:
        """The most tokens that a single request can have."""
        return self._pool.counts().total * self._params.page_size

    def counts(self) -> BlockCounts:
        """How many pages there are, free, and free but findable."""
        return self._pool.counts()

    def contains(self, request_id: RequestID) -> bool:
        """Whether the request holds pages."""
        return request_id in self._claims

    def match(self, tokens: npt.NDArray[np.int64], key: CacheKey) -> PrefixMatch:
        """Finds the longest beginning of `tokens` (int64 `[n]`) that is cached under `key`.

        Only full pages count, and the last token never does: a step has to compute at least one. Nothing is taken; the
        result holds until the next `reserve`.
        """
        if not self._params.enable_prefix_caching:
            return PrefixMatch()
        size = self._params.page_size
        parent = key.root()
        blocks: list[BlockID] = []
        hashes: list[BlockHash] = []
        for begin in range(0, (len(tokens) - 1) // size * size, size):
            page = np.ascontiguousarray(tokens[begin : begin + size])
            parent = hash_block(parent, page)
            block = self._pool.find(parent, page.tobytes())
            if block is None:
                break
            blocks.append(block)
            hashes.append(parent)
        return PrefixMatch(tuple(blocks), tuple(hashes), len(blocks) * size)

    def has_room(self, num_tokens: int, prefix: PrefixMatch, watermark: float) -> bool:
        """Whether a request of `num_tokens` tokens could begin and leave the pool filled to at most `watermark`."""
        counts = self._pool.counts()
        needed = self._params.num_blocks_for(num_tokens) - len(prefix.blocks)
        return needed <= counts.free and counts.used + needed <= watermark * counts.total

    def reserve(self, request_id: RequestID, num_tokens: int, key: CacheKey, prefix: PrefixMatch | None = None) -> None:
        """Makes sure that the request has pages for `num_tokens` tokens in all.

        Args:
            request_id: The request; one that holds no pages yet begins here.
            num_tokens: Tokens that are cached plus tokens that steps will add.
            key: What its pages are found by; the same as long as it holds any.
            prefix: What `match` found, for a request that begins.

        Raises:
            InsufficientBlocksError: Too few pages are free; the request holds what it held before.
            ValueError: The key differs from the one of the pages that the request holds, or it takes a prefix too late.
        """
        claim = self._claims.get(request_id)
        if claim is None:
            claim = _Claim(key)
        elif claim.key != key or prefix:
            raise ValueError(f"request {request_id} holds pages under another key; release them first")
        shared = list(prefix.blocks) if prefix else []
        missing = self._params.num_blocks_for(num_tokens) - len(claim.blocks) - len(shared)
        self._pool.share(shared)
        try:
            taken = self._pool.take(max(missing, 0))
        except InsufficientBlocksError:
            self._pool.drop(shared)
            raise
        claim.blocks += shared + taken
        claim.hashes += prefix.hashes if prefix else ()
        self._claims[request_id] = claim

    def inputs(self, rows: Sequence[CacheRow], num_steps: int = 1) -> KVCacheInputs[Buffer, Buffer]:
        """The cache inputs of a step over `rows`, in their order; `num_steps` forward passes will be made.

        Raises:
            ValueError: A request has fewer pages than the step writes to.
        """
        size = self._params.page_size
        for row in rows:
            claim = self._claims.get(row.request_id)
            held = 0 if claim is None else len(claim.blocks) * size
            if row.num_cached + row.num_new + num_steps - 1 > held:
                raise ValueError(
                    f"request {row.request_id} has pages for {held} tokens, the step needs "
                    f"{row.num_cached + row.num_new + num_steps - 1}"
                )
        blocks = [self._claims[row.request_id].blocks for row in rows]
        table = np.full((len(rows), max(map(len, blocks), default=1)), self._null_block, dtype=np.uint32)
        for index, pages in enumerate(blocks):
            table[index, : len(pages)] = pages
        most_new = max((row.num_new for row in rows), default=0)
        most_total = max((row.num_cached + row.num_new for row in rows), default=0)
        max_lengths = [(most_new if step == 0 else min(most_new, 1), most_total + step) for step in range(num_steps)]
        lengths = [row.request_length for row in rows if row.request_length is not None]
        if lengths and len(lengths) != len(rows):
            raise ValueError("either all requests of a step state the length that decides their frequencies, or none")
        device = KVCacheInputsPerDevice(
            kv_blocks=self._pages,
            cache_lengths=_uint32([row.num_cached for row in rows]),
            lookup_table=Buffer.from_numpy(table),
            max_lengths=Buffer.from_numpy(np.array(max_lengths, dtype=np.uint32).reshape(num_steps, 2)),
            request_lengths=_uint32(lengths) if lengths else None,
        )
        return KVCacheInputs([device])

    def commit(self, request_id: RequestID, tokens: npt.NDArray[np.int64], num_computed: int) -> None:
        """Publishes the pages that are full by now, so that other requests can find them.

        Args:
            request_id: The request.
            tokens: All its tokens, int64 `[n]`.
            num_computed: How many of them have their keys and values in the cache.
        """
        if not self._params.enable_prefix_caching:
            return
        claim = self._claims[request_id]
        size = self._params.page_size
        for index in range(len(claim.hashes), num_computed // size):
            page = np.ascontiguousarray(tokens[index * size : (index + 1) * size])
            block_hash = hash_block(claim.hashes[-1] if claim.hashes else claim.key.root(), page)
            claim.blocks[index] = self._pool.publish(claim.blocks[index], block_hash, page.tobytes())
            claim.hashes.append(block_hash)

    def release(self, request_id: RequestID) -> None:
        """Gives the request's pages back. Published ones can still be found until they are needed for something else.

        Raises:
            ValueError: It holds none.
        """
        claim = self._claims.pop(request_id, None)
        if claim is None:
            raise ValueError(f"request {request_id} holds no pages")
        self._pool.drop(claim.blocks)

    def reset(self) -> None:
        """Forgets all cached prefixes. What requests hold they keep."""
        self._pool.forget_all()
        for claim in self._claims.values():
            claim.hashes.clear()

    def check(self) -> None:
        """Asserts that every page is either free or held by exactly the requests that count it."""
        self._pool.check([claim.blocks for claim in self._claims.values()])


def _uint32(values: Sequence[int]) -> Buffer:
    return Buffer.from_numpy(np.array(values, dtype=np.uint32))
