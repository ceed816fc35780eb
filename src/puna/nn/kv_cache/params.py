"""Sizes of the paged KV cache: which numbers a page holds, and how many bytes that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, get_args

from puna.dtype import DType
from puna.graph.device import DeviceRef

__all__ = ["KVCacheParams", "KVCacheQuantizationConfig", "KVConnectorConfig", "KVConnectorType"]

KVConnectorType: TypeAlias = Literal["null", "local", "tiered", "lmcache", "dkv"]
"""Where pages go when memory is short: nowhere (`null`), or one of four kinds of store."""

_SHORTHAND: Final = {
    DType.float32: "f32",
    DType.float16: "f16",
    DType.bfloat16: "bf16",
    DType.float64: "f64",
    DType.float8_e4m3fn: "f8e4m3fn",
    DType.float8_e5m2: "f8e5m2",
    DType.int8: "i8",
    DType.uint8: "u8",
}


@dataclass(frozen=True, slots=True)
class KVConnectorConfig:
    """Settings of a store for pages outside the cache.

    Attributes:
        host_kvcache_swap_space_gb: Host memory for pages, in GB.
        disk_offload_dir: Directory for pages on disk, or None.
        disk_offload_max_gb: Disk space for pages, in GB.
        disk_offload_direct_io: Whether the page cache of the operating system is bypassed.
        block_store_endpoint: Address of a distributed store, or None.
    """

    host_kvcache_swap_space_gb: float = 50.0
    disk_offload_dir: str | None = None
    disk_offload_max_gb: float = 50.0
    disk_offload_direct_io: bool = False
    block_store_endpoint: str | None = None

    def __post_init__(self) -> None:
        for name in ("host_kvcache_swap_space_gb", "disk_offload_max_gb"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be at least 0, got {value}")


@dataclass(frozen=True, slots=True)
class KVCacheQuantizationConfig:
    """How a cache of narrow elements is scaled: one scale for each `quantization_granularity` elements of a head.

    Attributes:
        scale_dtype: Element type of the scales.
        quantization_granularity: Elements of one head that share a scale.
    """

    scale_dtype: DType = DType.float32
    quantization_granularity: int = 128

    def __post_init__(self) -> None:
        if self.quantization_granularity < 1:
            raise ValueError(f"quantization_granularity must be at least 1, got {self.quantization_granularity}")

    @classmethod
    def of(cls, dtype: DType, head_dim: int) -> KVCacheQuantizationConfig | None:
        """The scales that the kernels keep: for int8 a float32 for each head of each token, none for other types."""
        return cls(DType.float32, head_dim) if dtype is DType.int8 else None


@dataclass(frozen=True)
class KVCacheParams:
    """What a KV cache is made of.

    A page holds `page_size` tokens of one request: `[2, num_layers, page_size, n_kv_heads_per_device, head_dim]`,
    keys at index 0 and values at index 1.

    Attributes:
        dtype: Element type of keys and values.
        n_kv_heads: Key and value heads of the model, all devices together.
        head_dim: Elements of a head.
        num_layers: Layers that keep keys and values.
        devices: Where the caches live, replica by replica.
        enable_prefix_caching: Whether full pages may be shared between requests with equal beginnings.
        kv_connector: A store for pages outside the cache, or None.
        kv_connector_config: Its settings, or None.
        host_kvcache_swap_space_gb: Host memory for pages that were pushed out, in GB, or None.
        page_size: Tokens of a page. Any number from 1; 128 unless something else is asked for.
        is_mla: Latent attention: a page holds one vector per token instead of keys and values.
        num_q_heads: Query heads of the model, or None where nobody needs them.
        data_parallel_degree: Replicas of the model.
        n_kv_heads_per_device: Computed: `max(n_kv_heads / tensor_parallel_degree, 1)`; all heads under data
            parallelism.
        num_q_heads_per_device: Computed in the same way from `num_q_heads`, or None.
        kvcache_quant_config: Scales of a cache of narrow elements, or None.
        num_eagle_speculative_tokens: Draft tokens that a step may write beyond a request's own, 0 without speculation.

    Raises:
        ValueError: A count is below 1; the replicas do not fit the devices; heads cannot be divided over the devices;
            pages are to be pushed out without prefix caching; the granularity of scales does not divide `head_dim`.
    """

    dtype: DType
    n_kv_heads: int
    head_dim: int
    num_layers: int
    devices: Sequence[DeviceRef]
    enable_prefix_caching: bool = False
    kv_connector: KVConnectorType | None = None
    kv_connector_config: KVConnectorConfig | None = None
    host_kvcache_swap_space_gb: float | None = None
    page_size: int = 128
    is_mla: bool = False
    num_q_heads: int | None = None
    data_parallel_degree: int = 1
    n_kv_heads_per_device: int = field(init=False)
    num_q_heads_per_device: int | None = field(init=False)
    kvcache_quant_config: KVCacheQuantizationConfig | None = None
    num_eagle_speculative_tokens: int = 0

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_parallelism()
        self._check_offload()
        self._check_scales()
        heads = self._heads_of_a_device("n_kv_heads", self.n_kv_heads, replicable=self.is_mla)
        object.__setattr__(self, "n_kv_heads_per_device", heads)
        query_heads = None
        if self.num_q_heads is not None:
            query_heads = self._heads_of_a_device("num_q_heads", self.num_q_heads, replicable=False)
        object.__setattr__(self, "num_q_heads_per_device", query_heads)

    @property
    def n_devices(self) -> int:
        """Devices of all replicas together."""
        return len(self.devices)

    @property
    def tensor_parallel_degree(self) -> int:
        """Devices that share one replica: `n_devices / data_parallel_degree`."""
        return self.n_devices // self.data_parallel_degree

    @property
    def dtype_shorthand(self) -> str:
        """The element type in short: `f32`, `f16`, `bf16`."""
        return _SHORTHAND.get(self.dtype, str(self.dtype))

    @property
    def shape_per_block(self) -> tuple[int, int, int, int, int]:
        """Shape of one page on one device: `(2, num_layers, page_size, n_kv_heads_per_device, head_dim)`."""
        planes = 1 if self.is_mla else 2
        return (planes, self.num_layers, self.page_size, self.n_kv_heads_per_device, self.head_dim)

    @property
    def shape_per_scale_block(self) -> tuple[int, int, int, int, int] | None:
        """Shape of the scales of one page on one device, or None where nothing is scaled."""
        if self.kvcache_quant_config is None:
            return None
        scales = self.head_dim // self.kvcache_quant_config.quantization_granularity
        return (*self.shape_per_block[:-1], scales)

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one page, with its scales, summed over the devices that share a replica."""
        size = math.prod(self.shape_per_block) * self.dtype.size_in_bytes
        if self.kvcache_quant_config is not None and self.shape_per_scale_block is not None:
            size += math.prod(self.shape_per_scale_block) * self.kvcache_quant_config.scale_dtype.size_in_bytes
        return size * self.tensor_parallel_degree

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes, summed over the devices that share a replica (a page's bytes over its tokens)."""
        return self.bytes_per_block // self.page_size

    def num_blocks_for(self, num_tokens: int) -> int:
        """Pages that `num_tokens` tokens of one request take: `ceil(num_tokens / page_size)`."""
        return -(-num_tokens // self.page_size)

    def num_blocks_within(self, available_bytes: int, max_seq_len: int, max_batch_size: int) -> int:
        """Pages of a pool: what fits into the bytes, at most what `max_batch_size` full requests take.

        `min(floor(available_bytes / bytes_per_block), ceil(max_seq_len / page_size) * max_batch_size)`, without a
        null page.
        """
        return min(available_bytes // self.bytes_per_block, self.num_blocks_for(max_seq_len) * max_batch_size)

    def _check_counts(self) -> None:
        for name in ("n_kv_heads", "head_dim", "num_layers", "page_size", "data_parallel_degree"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not self.devices:
            raise ValueError("devices is empty; a KV cache needs at least one device")
        if self.num_eagle_speculative_tokens < 0:
            raise ValueError(f"num_eagle_speculative_tokens is negative: {self.num_eagle_speculative_tokens}")
        if self.kv_connector is not None and self.kv_connector not in get_args(KVConnectorType):
            raise ValueError(
                f"kv_connector {self.kv_connector!r} is unknown; there is: {', '.join(get_args(KVConnectorType))}"
            )

    def _check_parallelism(self) -> None:
        degree, devices = self.data_parallel_degree, self.n_devices
        if degree > devices:
            raise ValueError(f"data_parallel_degree {degree} is more than the {devices} devices there are")
        if devices % degree:
            raise ValueError(f"{devices} devices cannot be divided into {degree} replicas of equal size")
        if degree > 1 and degree != devices:
            raise ValueError(
                f"data_parallel_degree must be 1 or the number of devices ({devices}), got {degree}: "
                "data and tensor parallelism are not combined"
            )

    def _check_offload(self) -> None:
        pushes_out = self.kv_connector not in (None, "null") or bool(self.host_kvcache_swap_space_gb)
        if pushes_out and not self.enable_prefix_caching:
            raise ValueError("pages can be moved out of the cache only with enable_prefix_caching: hashes find them")

    def _check_scales(self) -> None:
        config = self.kvcache_quant_config
        if config is not None and self.head_dim % config.quantization_granularity:
            raise ValueError(
                f"quantization_granularity {config.quantization_granularity} does not divide head_dim {self.head_dim}"
            )

    def _heads_of_a_device(self, name: str, heads: int, *, replicable: bool) -> int:
        degree = self.tensor_parallel_degree
        if heads % degree and not (replicable and degree % heads == 0):
            raise ValueError(f"{name} ({heads}) cannot be divided over {degree} devices")
        return max(heads // degree, 1)
