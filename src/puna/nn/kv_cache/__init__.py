"""Sizes and inputs of the paged KV cache."""

from __future__ import annotations

from puna.nn.kv_cache.inputs import KVCacheInputs, KVCacheInputsPerDevice, PreviousStep, increment_cache_lengths
from puna.nn.kv_cache.params import KVCacheParams, KVCacheQuantizationConfig, KVConnectorConfig, KVConnectorType

__all__ = [
    "KVCacheInputs",
    "KVCacheInputsPerDevice",
    "KVCacheParams",
    "KVCacheQuantizationConfig",
    "KVConnectorConfig",
    "KVConnectorType",
    "PreviousStep",
    "increment_cache_lengths",
]
