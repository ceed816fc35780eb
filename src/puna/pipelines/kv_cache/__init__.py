"""The paged KV cache: who owns which page, and how pages with equal contents are found again."""

from __future__ import annotations

from puna.pipelines.kv_cache.blocks import BlockCounts, BlockPool
from puna.pipelines.kv_cache.durable import BlockStore, StoreCounts, cache_identity
from puna.pipelines.kv_cache.hashing import BlockHash, BlockHasher, BlockID, CacheKey
from puna.pipelines.kv_cache.manager import CacheRow, PagedKVCacheManager, PrefixMatch, SequenceID
from puna.pipelines.kv_cache.memory import MachineMemory, machine_memory, plan_num_blocks

__all__ = [
    "BlockCounts",
    "BlockHash",
    "BlockHasher",
    "BlockID",
    "BlockPool",
    "BlockStore",
    "CacheKey",
    "CacheRow",
    "MachineMemory",
    "PagedKVCacheManager",
    "PrefixMatch",
    "SequenceID",
    "StoreCounts",
    "cache_identity",
    "machine_memory",
    "plan_num_blocks",
]
