"""The paged KV cache: who owns which page, and how pages with equal contents are found again."""

from __future__ import annotations

from puna.pipelines.kv_cache.blocks import BlockCounts, BlockPool
from puna.pipelines.kv_cache.hashing import BlockHash, BlockID, CacheKey, hash_block
from puna.pipelines.kv_cache.manager import CacheRow, PagedKVCacheManager, PrefixMatch
from puna.pipelines.kv_cache.memory import MachineMemory, machine_memory, plan_num_blocks

__all__ = [
    "BlockCounts",
    "BlockHash",
    "BlockID",
    "BlockPool",
    "CacheKey",
    "CacheRow",
    "MachineMemory",
    "PagedKVCacheManager",
    "PrefixMatch",
    "hash_block",
    "machine_memory",
    "plan_num_blocks",
]
