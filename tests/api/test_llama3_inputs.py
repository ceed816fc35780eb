"""`Llama3Inputs`: fields, the order of `buffers`, and the call order with adapters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from puna.driver import Buffer
from puna.dtype import DType
from puna.nn.kv_cache import KVCacheInputs, KVCacheInputsPerDevice
from puna.pipelines.architectures.llama3 import Llama3Inputs
from puna.pipelines.architectures.llama3.inputs import lora_call_order
from puna.pipelines.lib import ModelInputs

LORA_FIELDS = (
    "lora_ids",
    "lora_ranks",
    "lora_grouped_offsets",
    "num_active_loras",
    "lora_end_idx",
    "batch_seq_len",
    "lora_ids_kv",
    "lora_grouped_offsets_kv",
)


def buffer(*values: int, dtype: Any = np.int64) -> Buffer:
    return Buffer.from_numpy(np.array(values, dtype=dtype))


def make(**changes: Any) -> Llama3Inputs:
    values: dict[str, Any] = {
        "tokens": buffer(5, 6, 7),
        "input_row_offsets": buffer(0, 3, dtype=np.uint32),
        "signal_buffers": [],
        "return_n_logits": buffer(1),
        **changes,
    }
    return Llama3Inputs(**values)


def cache() -> KVCacheInputs[Buffer, Buffer]:
    uint32 = np.uint32
    device = KVCacheInputsPerDevice(
        Buffer.zeros((1, 2, 1, 4, 1, 2), DType.float32), buffer(0, dtype=uint32), buffer(0, dtype=uint32), buffer(0)
    )
    return KVCacheInputs([device])


def same(left: tuple[Buffer, ...], right: tuple[Buffer, ...]) -> bool:
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))


def test_positions_are_the_documented_ones() -> None:
    parts = [buffer(n) for n in range(11)]
    inputs = Llama3Inputs(parts[0], parts[1], [parts[2]], *parts[3:])
    assert (inputs.tokens, inputs.input_row_offsets, inputs.signal_buffers) == (parts[0], parts[1], [parts[2]])
    assert inputs.return_n_logits is parts[3]
    assert inputs.lora_grouped_offsets is parts[4]
    assert inputs.data_parallel_splits is parts[10]
    with pytest.raises(TypeError):
        Llama3Inputs(*parts, parts[0])  # type: ignore[misc, call-arg]
    assert isinstance(inputs, ModelInputs)


def test_defaults_are_none() -> None:
    inputs = make()
    for name in (*LORA_FIELDS, "data_parallel_splits", "kv_cache_inputs", "hidden_states"):
        assert getattr(inputs, name) is None
    assert inputs.stated_lora_fields == []


def test_signal_buffers_stand_before_the_cache() -> None:
    signals, kv = [buffer(1, dtype=np.uint8), buffer(2, dtype=np.uint8)], cache()
    inputs = make(signal_buffers=signals, kv_cache_inputs=kv)
    head = (inputs.tokens, inputs.input_row_offsets, inputs.return_n_logits)
    assert same(inputs.buffers, (*head, *signals, *kv.flatten()))
    assert isinstance(inputs.buffers, tuple)


def test_without_a_cache_there_are_none_of_its_leaves() -> None:
    assert len(make().buffers) == 3


def test_splits_take_the_place_of_signal_buffers() -> None:
    kv, splits = cache(), buffer(0, 2, 3)
    inputs = make(signal_buffers=[buffer(1, dtype=np.uint8)], kv_cache_inputs=kv, data_parallel_splits=splits)
    head = (inputs.tokens, inputs.input_row_offsets, inputs.return_n_logits)
    assert same(inputs.buffers, (*head, splits, *kv.flatten()))


def test_nested_splits_become_one_vector() -> None:
    packed = make(data_parallel_splits=[[0, 2], [3]]).buffers[3]
    assert (packed.dtype, packed.to_numpy().tolist()) == (DType.int64, [0, 2, 3])


def test_adapters_are_never_in_buffers() -> None:
    lora = {name: buffer(index) for index, name in enumerate(LORA_FIELDS)}
    assert len(make(**lora).buffers) == 3


def test_the_call_order_with_adapters() -> None:
    lora = {name: buffer(index) for index, name in enumerate(LORA_FIELDS)}
    signals, kv = [buffer(9, dtype=np.uint8)], cache()
    inputs = make(signal_buffers=signals, kv_cache_inputs=kv, **lora)
    head = (inputs.tokens, inputs.input_row_offsets, inputs.return_n_logits)
    assert same(lora_call_order(inputs), (*head, *lora.values(), *signals, *kv.flatten()))


@pytest.mark.parametrize("missing", LORA_FIELDS)
def test_a_partial_set_is_an_error_that_names_what_is_missing(missing: str) -> None:
    lora = {name: buffer(1) for name in LORA_FIELDS if name != missing}
    with pytest.raises(ValueError, match=missing):
        lora_call_order(make(**lora))


def test_adapters_and_replicas_exclude_each_other() -> None:
    lora = {name: buffer(1) for name in LORA_FIELDS}
    with pytest.raises(ValueError, match="data_parallel_splits"):
        lora_call_order(make(data_parallel_splits=buffer(0, 1), **lora))


def test_buffers_read_the_fields_as_they_are_now() -> None:
    inputs = make()
    changed = buffer(9)
    inputs.update(tokens=changed)
    assert inputs.buffers[0] is changed
    assert replace(inputs, tokens=buffer(1)).buffers[0] is not changed


@pytest.mark.parametrize("states", [None, buffer(1), [buffer(1), buffer(2)]], ids=["none", "one", "list"])
def test_hidden_states_are_carried(states: Any) -> None:
    assert make(hidden_states=states).hidden_states is states
