"""Which rows of a step have which adapter, as the model is told it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from puna.driver import Buffer

__all__ = ["AdapterRouting"]

BASE = -1
"""The slot of requests without an adapter."""


@dataclass(frozen=True, slots=True)
class AdapterRouting:
    """Groups of consecutive requests with one adapter; requests without one come after all of them.

    Attributes:
        slots: Slot of each group.
        ranks: True rank of each group's adapter.
        ends: How many requests come before the end of each group.
    """

    slots: tuple[int, ...] = ()
    ranks: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()

    @classmethod
    def of(cls, slots: Sequence[int], ranks: Sequence[int]) -> AdapterRouting:
        """The groups of requests whose adapters are in these slots (-1: none), with the rank of each request's.

        Raises:
            ValueError: a request with an adapter comes after one without.
        """
        num_adapted = sum(slot != BASE for slot in slots)
        if any(slot == BASE for slot in slots[:num_adapted]):
            raise ValueError(f"requests without an adapter must come last in a step, their slots are {list(slots)}")
        ends = [i + 1 for i in range(num_adapted) if i + 1 == num_adapted or slots[i + 1] != slots[i]]
        last = [end - 1 for end in ends]
        return cls(tuple(slots[i] for i in last), tuple(ranks[i] for i in last), tuple(ends))

    def inputs(self, row_offsets: npt.NDArray[np.uint32], num_slots: int) -> dict[str, Buffer]:
        """The eight inputs of a step, by name.

        Args:
            row_offsets: uint32 `[B + 1]`: the requests' rows.
            num_slots: How many slots there are.
        """
        borders = row_offsets[[0, *self.ends]]
        num_rows = int(borders[-1])
        end = np.zeros(num_rows, np.int64)
        end[:1] = num_rows
        ids = np.array(self.slots, np.int32)
        arrays: dict[str, npt.NDArray[Any]] = {
            "lora_ids": ids,
            "lora_ranks": np.array(self.ranks, np.uint32),
            "lora_grouped_offsets": borders,
            "num_active_loras": np.array([len(ids)], np.int64),
            "lora_end_idx": end,
            "batch_seq_len": np.array([row_offsets[-1]], np.int64),
            "lora_ids_kv": np.concatenate([ids, ids + np.int32(num_slots)]),
            "lora_grouped_offsets_kv": np.concatenate([borders, borders[1:] + borders[-1]]),
        }
        return {name: Buffer.from_numpy(array) for name, array in arrays.items()}
