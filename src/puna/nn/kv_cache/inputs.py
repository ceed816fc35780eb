"""What a step is told about the KV cache: the page pool, and which pages each request owns.

The records are generic: with `Buffer` they are the inputs of a step, with graph types or graph values they describe
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import numpy as np

from puna.driver import Buffer
from puna.dtype import DType

__all__ = ["KVCacheInputs", "KVCacheInputsPerDevice", "PreviousStep", "increment_cache_lengths"]

TensorT = TypeVar("TensorT")
BufferT = TypeVar("BufferT")


@dataclass
class KVCacheInputsPerDevice(Generic[TensorT, BufferT]):
    """The cache of one device during one step (`B` requests of this replica, `P` page size, `D` head size).

    Attributes:
        kv_blocks: The page pool, cache dtype `[num_pages, 2, num_layers, P, n_kv_heads_per_device, D]`; a step writes
            to it.
        cache_lengths: uint32 `[B]`: tokens of each request that are cached before this step.
        lookup_table: uint32 `[B, max_pages]`: the pages of each request in order; unused entries name the null page.
        max_lengths: uint32 `[num_steps, 2]`, on the host: for each step the largest number of new tokens, and the
            largest number of tokens after it.
        kv_scales: Scales of a quantized cache, or None.
        attention_dispatch_metadata: int64 `[4]` (batch size, largest number of new tokens, partitions, longest
            cache), tuning values of accelerators, or None.
        draft_attention_dispatch_metadata: The same for a draft model, or None.
        request_lengths: uint32 `[B]` or None: the length that decides each request's rotary frequencies where these
            depend on it (longrope, dynamic). None: cached plus new tokens. It exists beside the page's own leaves,
            and comes last.
    """

    kv_blocks: BufferT
    cache_lengths: TensorT
    lookup_table: TensorT
    max_lengths: TensorT
    kv_scales: BufferT | None = None
    attention_dispatch_metadata: TensorT | None = None
    draft_attention_dispatch_metadata: TensorT | None = None
    request_lengths: TensorT | None = None

    def flatten(self) -> tuple[TensorT | BufferT, ...]:
        """The leaves that are there, in the order in which a graph takes them."""
        required: tuple[TensorT | BufferT, ...] = (
            self.kv_blocks,
            self.cache_lengths,
            self.lookup_table,
            self.max_lengths,
        )
        optional: tuple[TensorT | BufferT | None, ...] = (
            self.kv_scales,
            self.attention_dispatch_metadata,
            self.draft_attention_dispatch_metadata,
            self.request_lengths,
        )
        return required + tuple(leaf for leaf in optional if leaf is not None)


@dataclass
class KVCacheInputs(Generic[TensorT, BufferT]):
    """The caches of all devices during one step.

    Attributes:
        inputs: One entry per device, replica by replica: all devices of replica 0 first.
    """

    inputs: Sequence[KVCacheInputsPerDevice[TensorT, BufferT]]

    def __len__(self) -> int:
        return len(self.inputs)

    def __iter__(self) -> Iterator[KVCacheInputsPerDevice[TensorT, BufferT]]:
        return iter(self.inputs)

    def __getitem__(self, index: int) -> KVCacheInputsPerDevice[TensorT, BufferT]:
        return self.inputs[index]

    def flatten(self) -> tuple[TensorT | BufferT, ...]:
        """The leaves of every device, one device after the other."""
        return tuple(leaf for device in self.inputs for leaf in device.flatten())


class PreviousStep(Protocol):
    """What `increment_cache_lengths` needs to know of the step that just ran."""

    @property
    def input_row_offsets(self) -> Buffer:
        """uint32 `[B + 1]`: the step's row offsets, all replicas together."""
        ...


def increment_cache_lengths(
    kv_inputs: KVCacheInputs[Buffer, Buffer], prev_model_inputs: PreviousStep
) -> KVCacheInputs[Buffer, Buffer]:
    """The cache inputs of the next step of a multistep turn: what the step just wrote now counts as cached.

    For each request `cache_lengths += row_offsets[b + 1] - row_offsets[b]`; the first row of `max_lengths` is
    dropped; pages stay. It must run before `prepare_next_token_inputs`, with the inputs of the step that ran.
    Requests are counted replica by replica, so each device takes its own part of the offsets. Nothing is changed in
    place.

    Args:
        kv_inputs: The cache inputs of the step that ran.
        prev_model_inputs: The model inputs of that step.

    Raises:
        ValueError: The offsets are of another number of requests than the cache inputs, or no row of `max_lengths` is
            left.
    """
    new_tokens = np.diff(prev_model_inputs.input_row_offsets.to_numpy().astype(np.int64))
    replicas = _distinct_replicas(kv_inputs)
    num_requests = sum(replica.cache_lengths.to_numpy().shape[0] for replica in replicas)
    if num_requests != new_tokens.shape[0]:
        raise ValueError(f"the offsets describe {new_tokens.shape[0]} requests, the cache inputs {num_requests}")
    advanced: dict[int, Buffer] = {}
    begin = 0
    for replica in replicas:
        lengths = replica.cache_lengths.to_numpy()
        end = begin + lengths.shape[0]
        updated = (lengths.astype(np.int64) + new_tokens[begin:end]).astype(np.uint32)
        advanced[id(replica.cache_lengths)] = Buffer.from_numpy(updated)
        begin = end
    return KVCacheInputs([
        replace(
            device,
            cache_lengths=advanced[id(device.cache_lengths)],
            max_lengths=_without_first_row(device.max_lengths),
        )
        for device in kv_inputs
    ])


def _distinct_replicas(
    kv_inputs: KVCacheInputs[Buffer, Buffer],
) -> list[KVCacheInputsPerDevice[Buffer, Buffer]]:
    """One device of each replica: devices of one replica share their length vector."""
    seen: dict[int, KVCacheInputsPerDevice[Buffer, Buffer]] = {}
    for device in kv_inputs:
        seen.setdefault(id(device.cache_lengths), device)
    return list(seen.values())


def _without_first_row(max_lengths: Buffer) -> Buffer:
    rows = max_lengths.to_numpy()
    if rows.shape[0] < 2:
        raise ValueError(f"max_lengths has {rows.shape[0]} rows; a further step needs one more")
    if max_lengths.dtype is not DType.uint32:
        raise ValueError(f"max_lengths has dtype {max_lengths.dtype}, expected uint32")
    return Buffer.from_numpy(np.ascontiguousarray(rows[1:]))
