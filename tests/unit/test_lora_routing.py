"""Which rows of a step have which adapter: the eight inputs as they are documented, and the slots behind them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from puna.pipelines.lib import LoRAConfig
from puna.pipelines.lora import AdapterRouting, LoRAManager
from support.adapters import PRODUCTS, module_shapes, random_pairs, write_peft
from support.tiny_model import CONFIG

DTYPES = {
    "lora_ids": np.int32,
    "lora_ranks": np.uint32,
    "lora_grouped_offsets": np.uint32,
    "num_active_loras": np.int64,
    "lora_end_idx": np.int64,
    "batch_seq_len": np.int64,
    "lora_ids_kv": np.int32,
    "lora_grouped_offsets_kv": np.uint32,
}


def inputs(slots: list[int], ranks: list[int], offsets: list[int], num_slots: int = 4) -> dict[str, list[int]]:
    buffers = AdapterRouting.of(slots, ranks).inputs(np.array(offsets, np.uint32), num_slots)
    arrays = {name: buffer.to_numpy() for name, buffer in buffers.items()}
    assert {name: array.dtype for name, array in arrays.items()} == DTYPES
    return {name: array.tolist() for name, array in arrays.items()}


def test_two_adapters_and_the_model_itself() -> None:
    """3 and 2 rows in slot 1, 4 in slot 0, 5 without an adapter, of four slots."""
    assert inputs([1, 1, 0, -1], [8, 8, 4, 0], [0, 3, 5, 9, 14]) == {
        "lora_ids": [1, 0],
        "lora_ranks": [8, 4],
        "lora_grouped_offsets": [0, 5, 9],
        "num_active_loras": [2],
        "lora_end_idx": [9, 0, 0, 0, 0, 0, 0, 0, 0],
        "batch_seq_len": [14],
        "lora_ids_kv": [1, 0, 5, 4],
        "lora_grouped_offsets_kv": [0, 5, 9, 14, 18],
    }


def test_nobody_has_an_adapter() -> None:
    assert inputs([-1, -1], [0, 0], [0, 3, 5]) == {
        "lora_ids": [],
        "lora_ranks": [],
        "lora_grouped_offsets": [0],
        "num_active_loras": [0],
        "lora_end_idx": [],
        "batch_seq_len": [5],
        "lora_ids_kv": [],
        "lora_grouped_offsets_kv": [0],
    }


def test_groups_are_of_consecutive_requests() -> None:
    found = inputs([1, 0, 1], [8, 4, 8], [0, 1, 2, 3])
    assert (found["lora_ids"], found["lora_grouped_offsets"]) == ([1, 0, 1], [0, 1, 2, 3])
    with pytest.raises(ValueError, match="must come last"):
        AdapterRouting.of([1, -1, 1], [8, 0, 8])


def test_slots_are_given_anew_longest_unused_first(tmp_path: Path) -> None:
    shapes = module_shapes(CONFIG, ("q_proj",))
    paths = [f"{name}={write_peft(tmp_path / name, random_pairs(shapes, 4, seed))}" for seed, name in enumerate("abc")]
    manager = LoRAManager(LoRAConfig(enable_lora=True, lora_paths=paths, max_num_loras=2), PRODUCTS)
    a, b, c = (manager.find(name) for name in "abc")
    assert manager.route([a, b, None]).slots == (0, 1)
    assert manager.route([b, a]).slots == (1, 0)
    assert manager.route([c]).slots == (1,)  # b's: a was used after it
    assert manager.route([a, c]).slots == (0, 1)
    assert manager.route([b, c]).slots == (0, 1)  # a's: c is needed
    with pytest.raises(ValueError, match="3 adapters in a step, max_num_loras is 2"):
        manager.route([a, b, c])
    manager.unload_adapter("b")
    assert manager.route([b, None]).slots == (0,)  # who began with it goes on
    assert manager.route([c]).slots == (1,) and manager.slots[0] is None
