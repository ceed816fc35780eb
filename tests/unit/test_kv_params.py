"""Arithmetic and inputs of the paged KV cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from puna.driver import Buffer
from puna.dtype import DType
from puna.graph import DeviceRef
from puna.nn.kv_cache import (
    KVCacheInputs,
    KVCacheInputsPerDevice,
    KVCacheParams,
    KVCacheQuantizationConfig,
    KVConnectorConfig,
    increment_cache_lengths,
)

CPUS = [DeviceRef.CPU(n) for n in range(8)]
LLAMA_8B = KVCacheParams(dtype=DType.bfloat16, n_kv_heads=8, head_dim=128, num_layers=32, devices=CPUS[:1])


def params(**changes: Any) -> KVCacheParams:
    values: dict[str, Any] = {
        "dtype": DType.float32,
        "n_kv_heads": 4,
        "head_dim": 16,
        "num_layers": 2,
        "devices": CPUS[:1],
        **changes,
    }
    return KVCacheParams(**values)


def test_the_reference_figures() -> None:
    assert LLAMA_8B.bytes_per_block == 16_777_216
    assert LLAMA_8B.bytes_per_token == 128 * 1024
    assert (40 << 30) // LLAMA_8B.bytes_per_block == 2560
    assert LLAMA_8B.num_blocks_within(40 << 30, 8192, 16) == 1024
    assert LLAMA_8B.num_blocks_within(40 << 30, 1 << 20, 16) == 2560


def test_defaults() -> None:
    made = params()
    assert (made.page_size, made.data_parallel_degree) == (128, 1)
    assert (made.enable_prefix_caching, made.is_mla) == (False, False)
    assert (made.kv_connector, made.kv_connector_config, made.host_kvcache_swap_space_gb) == (None, None, None)
    assert (made.num_q_heads, made.num_q_heads_per_device, made.kvcache_quant_config) == (None, None, None)
    assert made.num_eagle_speculative_tokens == 0


def test_shape_and_shorthand() -> None:
    made = params(page_size=32, num_q_heads=8)
    assert made.shape_per_block == (2, 2, 32, 4, 16)
    assert (made.n_kv_heads_per_device, made.num_q_heads_per_device) == (4, 8)
    assert (made.dtype_shorthand, LLAMA_8B.dtype_shorthand) == ("f32", "bf16")
    assert params(dtype=DType.float16).dtype_shorthand == "f16"


def test_tensor_parallelism_divides_heads_and_counts_all_shards() -> None:
    made = params(devices=CPUS[:2], num_q_heads=8)
    assert (made.n_devices, made.tensor_parallel_degree, made.n_kv_heads_per_device) == (2, 2, 2)
    assert made.num_q_heads_per_device == 4
    assert made.bytes_per_block == params().bytes_per_block


def test_replicas_hold_all_heads() -> None:
    made = params(devices=CPUS[:4], data_parallel_degree=4)
    assert (made.tensor_parallel_degree, made.n_kv_heads_per_device) == (1, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_parallel_degree": 0}, "data_parallel_degree"),
        ({"data_parallel_degree": 2}, "more than the 1 devices"),
        ({"devices": CPUS[:3], "data_parallel_degree": 2}, "cannot be divided"),
        ({"devices": CPUS[:4], "data_parallel_degree": 2}, "not combined"),
        ({"devices": CPUS[:3]}, "n_kv_heads"),
        ({"devices": CPUS[:8]}, "n_kv_heads"),
        ({"devices": []}, "devices"),
        ({"n_kv_heads": 0}, "n_kv_heads"),
        ({"head_dim": 0}, "head_dim"),
        ({"num_layers": 0}, "num_layers"),
        ({"page_size": 0}, "page_size"),
        ({"kv_connector": "tape"}, "tape"),
        ({"kv_connector": "tiered"}, "enable_prefix_caching"),
        ({"host_kvcache_swap_space_gb": 4.0}, "enable_prefix_caching"),
        ({"kvcache_quant_config": KVCacheQuantizationConfig()}, "does not divide"),
        ({"num_eagle_speculative_tokens": -1}, "num_eagle_speculative_tokens"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        params(**changes)


def test_scales_count_as_bytes_of_a_page() -> None:
    scaled = params(kvcache_quant_config=KVCacheQuantizationConfig(quantization_granularity=8))
    assert scaled.shape_per_scale_block == (2, 2, 128, 4, 2)
    assert scaled.bytes_per_block == params().bytes_per_block + 2 * 2 * 128 * 4 * 2 * 4
    assert params().shape_per_scale_block is None


def test_latent_attention_keeps_one_plane_and_may_be_replicated() -> None:
    made = params(is_mla=True, n_kv_heads=1, devices=CPUS[:4])
    assert (made.shape_per_block, made.n_kv_heads_per_device) == ((1, 2, 128, 1, 16), 1)


@pytest.mark.parametrize("size", [-1.0, float("nan")])
def test_store_sizes_are_checked(size: float) -> None:
    with pytest.raises(ValueError, match="host_kvcache_swap_space_gb"):
        KVConnectorConfig(host_kvcache_swap_space_gb=size)


def test_params_are_frozen_and_compare_by_value() -> None:
    assert params() == params()
    with pytest.raises(AttributeError):
        params().page_size = 1  # type: ignore[misc]
    assert replace(params(), page_size=16).shape_per_block[2] == 16


# inputs of a step


def uint32(*values: Any) -> Buffer:
    return Buffer.from_numpy(np.array(values, dtype=np.uint32))


def device(lengths: Buffer, max_lengths: list[tuple[int, int]], **more: Any) -> KVCacheInputsPerDevice[Buffer, Buffer]:
    return KVCacheInputsPerDevice(
        kv_blocks=Buffer.zeros((1, 2, 1, 4, 1, 2), DType.float32),
        cache_lengths=lengths,
        lookup_table=Buffer.from_numpy(np.zeros((lengths.shape[0], 1), dtype=np.uint32)),
        max_lengths=Buffer.from_numpy(np.array(max_lengths, dtype=np.uint32)),
        **more,
    )


@dataclass
class Step:
    input_row_offsets: Buffer


def test_flatten_gives_leaves_in_order_and_leaves_absent_ones_out() -> None:
    names: KVCacheInputsPerDevice[str, str] = KVCacheInputsPerDevice("blocks", "lengths", "table", "max")
    assert names.flatten() == ("blocks", "lengths", "table", "max")
    full = replace(names, kv_scales="scales", attention_dispatch_metadata="a", request_lengths="requests")
    assert full.flatten() == ("blocks", "lengths", "table", "max", "scales", "a", "requests")
    assert KVCacheInputs([names, full]).flatten() == names.flatten() + full.flatten()


def test_multistep_lengths_have_the_documented_values() -> None:
    inputs = KVCacheInputs([device(uint32(10, 0), [(4, 11), (1, 12), (1, 13)])])
    second = increment_cache_lengths(inputs, Step(uint32(0, 1, 5)))
    assert second[0].cache_lengths.to_numpy().tolist() == [11, 4]
    assert second[0].max_lengths.to_numpy().tolist() == [[1, 12], [1, 13]]
    third = increment_cache_lengths(second, Step(uint32(0, 1, 2)))
    assert third[0].cache_lengths.to_numpy().tolist() == [12, 5]
    assert third[0].max_lengths.to_numpy().tolist() == [[1, 13]]
    assert inputs[0].cache_lengths.to_numpy().tolist() == [10, 0]  # what the first step saw is still there
    assert third[0].kv_blocks is inputs[0].kv_blocks
    assert third[0].lookup_table is inputs[0].lookup_table
    with pytest.raises(ValueError, match="max_lengths"):
        increment_cache_lengths(third, Step(uint32(0, 1, 2)))


def test_each_replica_takes_its_part_and_its_devices_share_it() -> None:
    first, second = uint32(5, 6), uint32(7)
    rows = [(3, 9), (1, 10)]
    inputs = KVCacheInputs([device(first, rows), device(first, rows), device(second, rows)])
    moved = increment_cache_lengths(inputs, Step(uint32(0, 1, 4, 6)))
    assert [d.cache_lengths.to_numpy().tolist() for d in moved] == [[6, 9], [6, 9], [9]]
    assert moved[0].cache_lengths is moved[1].cache_lengths


def test_another_number_of_requests_is_an_error() -> None:
    with pytest.raises(ValueError, match="describe 3 requests"):
        increment_cache_lengths(KVCacheInputs([device(uint32(1, 2), [(1, 1)] * 2)]), Step(uint32(0, 1, 2, 3)))
