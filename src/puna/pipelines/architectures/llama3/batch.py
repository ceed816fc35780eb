"""From contexts to `Llama3Inputs`, and from the inputs of one step to those of the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from puna.driver import Buffer
from puna.errors import InvalidRequestError, ShapeError
from puna.nn.kv_cache import KVCacheInputs, KVCacheInputsPerDevice
from puna.nn.rotary_embedding import DynamicRopeScalingParams, LongRoPEScalingParams, RotaryEmbedding
from puna.pipelines.architectures.llama3.inputs import Llama3Inputs, lora_call_order
from puna.pipelines.context import TextContext
from puna.pipelines.lora import AdapterRouting

__all__ = ["batch_splits", "initial_inputs", "next_inputs", "with_request_lengths"]

KVInputs = KVCacheInputs[Buffer, Buffer]


def initial_inputs(
    replica_batches: Sequence[Sequence[TextContext]],
    kv_cache_inputs: KVInputs | None,
    return_n_logits: int,
    signal_buffers: list[Buffer],
    max_seq_len: int,
) -> Llama3Inputs:
    """The active tokens of all contexts in fresh arrays, replica by replica.

    Args:
        replica_batches: The contexts of each replica; empty lists are allowed.
        kv_cache_inputs: Carried as they are.
        return_n_logits: n of `ReturnLogits.VARIABLE`, from 1.
        signal_buffers: Carried as they are.
        max_seq_len: The model's length.

    Raises:
        InvalidRequestError: a request is longer than `max_seq_len`, or n is below 1.
    """
    if return_n_logits < 1:
        raise InvalidRequestError(f"must be at least 1, got {return_n_logits}", param="return_n_logits")
    ends, active = [0], []
    for batch in replica_batches:
        for context in batch:
            length = context.tokens.current_position
            if length > max_seq_len:
                raise InvalidRequestError(
                    f"request {context.request_id} has {length} tokens, the model takes {max_seq_len}",
                    param="max_length",
                )
            active.append(context.tokens.active)
            ends.append(ends[-1] + active[-1].shape[0])
    tokens = np.concatenate(active) if active else np.empty(0, dtype=np.int64)
    return Llama3Inputs(
        tokens=Buffer.from_numpy(tokens),
        input_row_offsets=Buffer.from_numpy(np.array(ends, dtype=np.uint32)),
        signal_buffers=signal_buffers,
        return_n_logits=Buffer.from_numpy(np.array([return_n_logits], dtype=np.int64)),
        data_parallel_splits=batch_splits(replica_batches) if len(replica_batches) > 1 else None,
        kv_cache_inputs=kv_cache_inputs,
    )


def batch_splits(replica_batches: Sequence[Sequence[TextContext]]) -> Buffer:
    """int64 `[replicas + 1]`: how many requests the replicas have, summed up: sizes 2, 0, 1 give 0, 2, 2, 3."""
    sizes = [len(batch) for batch in replica_batches]
    return Buffer.from_numpy(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def with_request_lengths(
    kv_inputs: KVInputs | None, replica_batches: Sequence[Sequence[TextContext]], rope: RotaryEmbedding
) -> KVInputs | None:
    """The KV inputs with the lengths that decide rotary frequencies, where these matter and nobody filled them in.

    Args:
        kv_inputs: One entry per replica.
        replica_batches: The contexts of each replica.
        rope: The model's rotary embedding.
    """
    depends = isinstance(rope.scaling, (LongRoPEScalingParams, DynamicRopeScalingParams))
    if kv_inputs is None or not depends or any(device.request_lengths is not None for device in kv_inputs):
        return kv_inputs
    return KVCacheInputs([
        replace(device, request_lengths=Buffer.from_numpy(_request_lengths(batch, rope)))
        for device, batch in zip(kv_inputs, replica_batches, strict=True)
    ])


def _request_lengths(batch: Sequence[TextContext], rope: RotaryEmbedding) -> npt.NDArray[np.uint32]:
    lengths = [rope.request_length(context.admission_length, len(context.tokens)) for context in batch]
    return np.array(lengths, dtype=np.uint32)


def next_inputs(
    next_tokens: Buffer, previous: Llama3Inputs, row_offsets: Buffer, rope: RotaryEmbedding, num_slots: int = 0
) -> Llama3Inputs:
    """The inputs of the step in which each request goes on with one token. Nothing is copied.

    Args:
        next_tokens: int64 `[B]`: the sampled tokens.
        previous: The inputs of the step that ran, with cache lengths that were advanced since
            (`puna.nn.kv_cache.increment_cache_lengths`).
        row_offsets: uint32 `[n]`: 0, 1, 2, …
        rope: The model's rotary embedding.
        num_slots: Slots for adapters.

    Raises:
        ShapeError: `next_tokens` is not a vector, or of another number of requests than the previous inputs.
        ValueError: the batch is larger than `row_offsets` allows, or a request reaches the length where its rotary
            frequencies change.
    """
    num_requests = previous.input_row_offsets.shape[0] - 1
    if next_tokens.shape != (num_requests,):
        raise ShapeError("next_tokens", next_tokens.shape, (num_requests,))
    if num_requests >= row_offsets.shape[0]:
        raise ValueError(f"the batch has {num_requests} requests, max_batch_size allows {row_offsets.shape[0] - 1}")
    offsets = row_offsets[: num_requests + 1]
    following = replace(
        previous,
        tokens=next_tokens,
        input_row_offsets=offsets,
        kv_cache_inputs=_next_cache_inputs(previous.kv_cache_inputs, rope),
        hidden_states=None,
    )
    following.update(**_next_adapter_inputs(previous, offsets, num_slots))
    return following


def _next_adapter_inputs(previous: Llama3Inputs, row_offsets: Buffer, num_slots: int) -> dict[str, Buffer]:
    """The same groups of requests, with one row each."""
    if not previous.stated_lora_fields:
        return {}
    lora_call_order(previous)  # refuses a partial set
    ids, ranks, borders = previous.lora_ids, previous.lora_ranks, previous.lora_grouped_offsets
    assert ids is not None and ranks is not None and borders is not None
    ends = np.searchsorted(previous.input_row_offsets.to_numpy(), borders.to_numpy()[1:])
    routing = AdapterRouting(tuple(ids.to_numpy().tolist()), tuple(ranks.to_numpy().tolist()), tuple(ends.tolist()))
    return routing.inputs(row_offsets.to_numpy(), num_slots)


def _next_cache_inputs(kv_inputs: KVInputs | None, rope: RotaryEmbedding) -> KVInputs | None:
    """The same inputs; under longrope without the previous step's lengths: cached plus new tokens is the length now."""
    if kv_inputs is None or not isinstance(rope.scaling, LongRoPEScalingParams):
        return kv_inputs
    for device in kv_inputs:
        _refuse_regime_change(device, rope)
    return KVCacheInputs([replace(device, request_lengths=None) for device in kv_inputs])


def _refuse_regime_change(device: KVCacheInputsPerDevice[Buffer, Buffer], rope: RotaryEmbedding) -> None:
    for cached in device.cache_lengths.to_numpy().tolist():
        if rope.regime(cached) != rope.regime(cached + 1):
            raise ValueError(
                f"a request grows to {cached + 1} tokens, where its rotary frequencies change: its cached keys are of "
                "no use, it must be read again from its first token"
            )
