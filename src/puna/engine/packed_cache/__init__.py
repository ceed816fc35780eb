"""Packed weights on disk, mapped and shared by later starts; see `docs/weights.md`."""

from puna.engine.packed_cache.identity import content_id, source_key
from puna.engine.packed_cache.packed_file import PackedFile, PackedRecord
from puna.engine.packed_cache.store import CacheEntry, PackedCache

__all__ = ["CacheEntry", "PackedCache", "PackedFile", "PackedRecord", "content_id", "source_key"]
