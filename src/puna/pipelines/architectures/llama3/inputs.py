"""`Llama3Inputs`: one step's batch, ragged: the rows of all requests one after the other, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from puna.driver import Buffer
from puna.pipelines.lib import ModelInputs

__all__ = ["Llama3Inputs", "lora_call_order"]

Splits: TypeAlias = Buffer | Sequence[Sequence[int]]

_LORA_FIELDS: Final = (
    "lora_ids",
    "lora_ranks",
    "lora_grouped_offsets",
    "num_active_loras",
    "lora_end_idx",
    "batch_seq_len",
    "lora_ids_kv",
    "lora_grouped_offsets_kv",
)


@dataclass
class Llama3Inputs(ModelInputs):
    """A class representing inputs for the Llama3 model.

    Shapes: `B` requests, `T` tokens, `G` groups of requests with one adapter, `m` tokens with an adapter.

    Request b owns the rows from `input_row_offsets[b]` up to `input_row_offsets[b + 1]`. The order of requests is the
    same in `tokens`, in the tables of the KV cache and in every output. Rows that read a prompt and rows that
    continue a text mix freely.

    Attributes:
        tokens: int64 `[T]`: token ids.
        input_row_offsets: uint32 `[B + 1]`: prefix sum of the requests' rows; first 0, last T.
        signal_buffers: Scratch memory of collectives, one uint8 buffer per device; empty on one device.
        return_n_logits: int64 `[1]`, on the host: n of `ReturnLogits.VARIABLE`; present in every mode.
        lora_grouped_offsets: uint32 `[G + 1]`: row offsets of the groups with one adapter, up to the last row with one.
        num_active_loras: int64 `[1]`, on the host: G.
        lora_end_idx: int64 `[m]`, on the host: its first element is m, and its length says so too.
        batch_seq_len: int64 `[1]`, on the host: T.
        lora_ids_kv: int32 `[2G]`: `lora_ids` for K, then the same plus the number of slots for V.
        lora_grouped_offsets_kv: uint32 `[2G + 1]`: `lora_grouped_offsets`, then its tail moved by m.
        data_parallel_splits: int64 `[replicas + 1]`, on the host: how many requests the replicas have, summed up; or
            the same numbers as nested sequences; None on one replica.
        kv_cache_inputs: The page pool and who owns which pages; needed to execute.
        lora_ids: int32 `[G]`: the adapter slot of each group.
        lora_ranks: uint32 `[G]`, on the host: the true rank of each group's adapter.
        hidden_states: `[T, H]`, or a list with one entry per replica: what a draft model reads.
    """

    tokens: Buffer
    input_row_offsets: Buffer
    signal_buffers: list[Buffer]
    return_n_logits: Buffer
    lora_grouped_offsets: Buffer | None = None
    num_active_loras: Buffer | None = None
    lora_end_idx: Buffer | None = None
    batch_seq_len: Buffer | None = None
    lora_ids_kv: Buffer | None = None
    lora_grouped_offsets_kv: Buffer | None = None
    data_parallel_splits: Splits | None = None

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """Positional inputs of the model, as the fields are now.

        `tokens, input_row_offsets, return_n_logits`, then either the splits (where they are set) or the signal
        buffers, then the leaves of the KV cache. The adapters' fields are never among them, see `lora_call_order`.
        """
        cache = self.kv_cache_inputs.flatten() if self.kv_cache_inputs is not None else ()
        head = (self.tokens, self.input_row_offsets, self.return_n_logits)
        if self.data_parallel_splits is not None:
            return (*head, pack_splits(self.data_parallel_splits, self.tokens), *cache)
        return (*head, *self.signal_buffers, *cache)

    @property
    def stated_lora_fields(self) -> list[str]:
        """Names of the adapters' fields that are set."""
        return [name for name in _LORA_FIELDS if getattr(self, name) is not None]


def pack_splits(splits: Splits, tokens: Buffer) -> Buffer:
    """The splits as one int64 vector beside the tokens: nested sequences are put one after the other."""
    if isinstance(splits, Buffer):
        return splits
    flat = [int(count) for part in splits for count in part]
    return Buffer.from_numpy(np.array(flat, dtype=np.int64)).to(tokens.device)


def lora_call_order(inputs: Llama3Inputs) -> tuple[Buffer, ...]:
    """Positional inputs of a model that runs adapters.

    `tokens, input_row_offsets, return_n_logits, lora_ids, lora_ranks, lora_grouped_offsets, num_active_loras,
    lora_end_idx, batch_seq_len, lora_ids_kv, lora_grouped_offsets_kv`, the signal buffers, the leaves of the KV
    cache.

    Raises:
        ValueError: only some of the eight fields are set, or the batch is split over replicas.
    """
    stated = inputs.stated_lora_fields
    missing = [name for name in _LORA_FIELDS if name not in stated]
    if missing:
        raise ValueError(f"the adapters' inputs are set together or not at all; {', '.join(missing)} is missing")
    if inputs.data_parallel_splits is not None:
        raise ValueError("adapters and data_parallel_splits cannot be combined")
    adapters: list[Buffer] = [getattr(inputs, name) for name in _LORA_FIELDS]
    cache = inputs.kv_cache_inputs.flatten() if inputs.kv_cache_inputs is not None else ()
    head = (inputs.tokens, inputs.input_row_offsets, inputs.return_n_logits)
    return (*head, *adapters, *inputs.signal_buffers, *cache)
