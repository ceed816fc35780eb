"""`KVCacheConfig`: options of the KV cache as users write them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, get_args

from puna.dtype import DType
from puna.errors import InvalidRequestError
from puna.nn.kv_cache import KVConnectorConfig, KVConnectorType

__all__ = ["KVCacheConfig"]

_FORMATS: Final = {
    "auto": DType.float16,
    "float32": DType.float32,
    "float16": DType.float16,
    "bfloat16": DType.bfloat16,
    "int8": DType.int8,
}
_ACCELERATOR_FORMATS: Final = ("float8_e4m3fn", "float4_e2m1fnx2")


@dataclass(kw_only=True)
class KVCacheConfig:
    """Options of the paged KV cache.

    Attributes:
        kv_cache_page_size: Tokens of a page, from 1.
        enable_prefix_caching: Whether requests with equal beginnings share pages.
        kv_connector: A store for pages outside the cache. None and `null`: there is none. The others are refused.
        kv_connector_config: Settings of that store.
        device_memory_utilization: Share of the memory that may be used, above 0, at most 1.
        kv_cache_format: Element type of keys and values: `float32`, `float16`, `bfloat16`, `int8` (codes with a
            float32 scale for each head of each token), or `auto`, which is float16 for every encoding. None is `auto`.

    Raises:
        InvalidRequestError: a value is out of range, unknown, or one that only accelerators have.
    """

    kv_cache_page_size: int = 128
    enable_prefix_caching: bool = True
    kv_connector: KVConnectorType | None = None
    kv_connector_config: KVConnectorConfig | None = None
    device_memory_utilization: float = 0.9
    kv_cache_format: str | None = None

    def __post_init__(self) -> None:
        if self.kv_cache_page_size < 1:
            raise InvalidRequestError(f"must be at least 1, got {self.kv_cache_page_size}", param="kv_cache_page_size")
        share = self.device_memory_utilization
        if not (math.isfinite(share) and 0 < share <= 1):
            raise InvalidRequestError(f"must be above 0 and at most 1, got {share}", param="device_memory_utilization")
        self._check_connector()
        self._check_format()

    @property
    def cache_dtype(self) -> DType:
        """Element type of keys and values, float16 unless one is named."""
        return _FORMATS[self.kv_cache_format or "auto"]

    def _check_connector(self) -> None:
        known = get_args(KVConnectorType)
        if self.kv_connector is not None and self.kv_connector not in known:
            raise InvalidRequestError(f"{self.kv_connector!r} is unknown; there is: null", param="kv_connector")
        if self.kv_connector not in (None, "null"):
            raise InvalidRequestError(
                f"{self.kv_connector!r} is not implemented: pages are not moved out of the cache; there is: null",
                param="kv_connector",
            )
        if self.kv_connector_config is not None:
            raise InvalidRequestError("has no effect without a kv_connector", param="kv_connector_config")

    def _check_format(self) -> None:
        name = self.kv_cache_format
        if name is None or name in _FORMATS:
            return
        reason = "needs an accelerator" if name in _ACCELERATOR_FORMATS else "is unknown"
        raise InvalidRequestError(f"{name!r} {reason}; there is: {', '.join(_FORMATS)}", param="kv_cache_format")
