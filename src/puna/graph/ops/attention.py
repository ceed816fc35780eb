"""Rotary embedding, the paged key-value cache, and attention over it.

Everything here works on a ragged batch: row t of the operands is a token; `input_row_offsets` says which rows belong
to which request; a request's first row has the absolute position `cache_lengths[b]`.

The cache is one array of blocks `[blocks, 2, layers, page_size, kv_heads, head_dim]`, keys at 0 and values at 1.
Position p of request b is slot `p % page_size` of block `lookup_table[b, p // page_size]`. Keys are stored after
rotation. A cache of int8 codes has scales beside it, `[blocks, 2, layers, page_size, kv_heads, 1]`: an element is its
code times the scale of its head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from puna.dtype import DType
from puna.errors import ShapeError
from puna.graph.ops.op import Array, EvaluationContext, Float32Array, Op, check_dtype, check_float_rows
from puna.graph.type import TensorType, describe
from puna.graph.value import Value

__all__ = [
    "KVCacheValues",
    "KVStore",
    "PagedAttention",
    "Rope",
    "RopeAngles",
    "RopeSpec",
    "kv_store",
    "paged_attention",
    "rope",
    "rope_angles",
]


class RopeSpec(Protocol):
    """What `rope_angles` needs to know about a rotary embedding."""

    @property
    def rot_dim(self) -> int:
        """How many leading elements of a head are rotated."""

    def inv_freq(self, length: int) -> Float32Array:
        """Inverse frequencies `[rot_dim / 2]` for a request of this length."""

    def attention_factor(self, length: int) -> float:
        """What cosine and sine are multiplied by."""

    def spec(self) -> tuple[str, Mapping[str, object]]:
        """Kind and parameters for the native program."""


class KVCacheValues(NamedTuple):
    """The inputs of a graph that describe the step's place in the cache.

    Attributes:
        kv_blocks: float or int8 `[blocks, 2, layers, page_size, kv_heads, head_dim]`; written in place.
        cache_lengths: uint32 `[batch_size]`, tokens cached before the step.
        lookup_table: uint32 `[batch_size, max_pages]`, block ids.
        kv_scales: float32 `[blocks, 2, layers, page_size, kv_heads, 1]` of an int8 cache, else None; written in place.
    """

    kv_blocks: Value
    cache_lengths: Value
    lookup_table: Value
    kv_scales: Value | None = None

    @property
    def operands(self) -> dict[str, Value]:
        """Those that are there, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class _Request(NamedTuple):
    """One request of a ragged batch: its rows, their absolute positions, and where positions are in the cache."""

    number: int
    rows: slice
    positions: np.ndarray[tuple[int], np.dtype[np.int64]]


def _requests(offsets: Array, cache_lengths: Array) -> Iterator[_Request]:
    for number, cached in enumerate(cache_lengths.tolist()):
        begin, end = int(offsets[number]), int(offsets[number + 1])
        yield _Request(number, slice(begin, end), np.arange(cached, cached + end - begin, dtype=np.int64))


def _check_cache(blocks: TensorType, scales: Sequence[TensorType], num_kv_heads: int, head_dim: int) -> None:
    check_dtype("kv_blocks", blocks, DType.float32, DType.float16, DType.bfloat16, DType.int8)
    if blocks.rank != 6 or blocks.shape[1] != 2 or blocks.shape[4:] != (num_kv_heads, head_dim):
        expected = f"[blocks, 2, layers, page_size, {num_kv_heads}, {head_dim}]"
        raise ShapeError("kv_blocks", describe(blocks.shape), expected)
    if (blocks.dtype is DType.int8) != bool(scales):
        raise ShapeError("kv_scales", "scales" if scales else "none", f"those of a cache of {blocks.dtype}")
    for scale in scales:
        check_dtype("kv_scales", scale, DType.float32)
        if scale.shape != (*blocks.shape[:5], 1):
            raise ShapeError("kv_scales", describe(scale.shape), describe((*blocks.shape[:5], 1)))


def _codes(x: Float32Array) -> tuple[Array, Float32Array]:
    """Heads `[..., D]` as int8 codes and one scale each, `[..., 1]`: `max|x| / 127`."""
    largest = np.abs(x).max(axis=-1, keepdims=True)
    scale = (largest / np.float32(127)).astype(np.float32)
    scale[scale < np.finfo(np.float32).tiny] = 0
    is_good = np.isfinite(scale) & (scale > 0)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=is_good)
    codes = np.rint(np.where(is_good, x, np.float32(0)) * inverse).astype(np.int8)
    return codes, np.where(np.isfinite(largest), scale, np.float32(np.nan))


@dataclass(frozen=True)
class RopeAngles(Op):
    """Cosines and sines of every token: columns `0 … rot_dim/2 - 1` are cosines, the rest sines.

    `angle = float32(position) * inv_freq` in float32; the frequencies belong to the request's length, which is
    `request_lengths[b]` or, where that is not given, all its tokens up to this step.
    """

    rope: RopeSpec
    opcode: ClassVar[str] = "rope_angles"

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        tokens, offsets, cache_lengths, *lengths = inputs
        check_dtype("the row offsets", offsets, DType.uint32)
        for what, given in zip(("cache_lengths", "request_lengths"), (cache_lengths, *lengths), strict=False):
            check_dtype(what, given, DType.uint32)
            if given.rank != 1:
                raise ShapeError(what, describe(given.shape), "[batch_size]")
        return (TensorType(DType.float32, (tokens.shape[0], self.rope.rot_dim), tokens.device),)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        tokens, offsets, cache_lengths, *rest = inputs
        lengths = rest[0] if rest else None
        result = np.zeros((tokens.shape[0], self.rope.rot_dim), dtype=np.float32)
        half = self.rope.rot_dim // 2
        for request in _requests(offsets, cache_lengths):
            total = int(request.positions[-1]) + 1 if request.positions.size else 0
            length = total if lengths is None else int(lengths[request.number])
            factor = np.float32(self.rope.attention_factor(length))
            angles = (request.positions.astype(np.float32)[:, None] * self.rope.inv_freq(length)).astype(np.float64)
            result[request.rows, :half] = np.cos(angles).astype(np.float32) * factor
            result[request.rows, half:] = np.sin(angles).astype(np.float32) * factor
        return (result,)


@dataclass(frozen=True)
class Rope(Op):
    """Each pair (x, y) of a head becomes `(x cos - y sin, x sin + y cos)`; elements from `rot_dim` on pass unchanged.

    Attributes:
        num_heads: Heads side by side in a row.
        head_dim: Elements of a head.
        rot_dim: Leading elements that are rotated.
        interleaved: Pairs are elements 2j and 2j+1; otherwise j and j + rot_dim/2.
    """

    num_heads: int
    head_dim: int
    rot_dim: int
    interleaved: bool
    opcode: ClassVar[str] = "rope"

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, angles = inputs
        check_float_rows("the operand of rope", x, self.num_heads * self.head_dim)
        check_float_rows("the angles of rope", angles, self.rot_dim)
        if not 0 < self.rot_dim <= self.head_dim or self.rot_dim % 2:
            raise ShapeError("the angles of rope", describe(angles.shape), f"an even width up to {self.head_dim}")
        return (x,)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        x, angles = inputs
        half = self.rot_dim // 2
        heads = x.reshape(x.shape[0], self.num_heads, self.head_dim)
        result = heads.copy()
        cosine, sine = angles[:, None, :half], angles[:, None, half:]
        if self.interleaved:
            first, second = slice(0, self.rot_dim, 2), slice(1, self.rot_dim, 2)
        else:
            first, second = slice(0, half), slice(half, self.rot_dim)
        result[..., first] = heads[..., first] * cosine - heads[..., second] * sine
        result[..., second] = heads[..., first] * sine + heads[..., second] * cosine
        return (result.reshape(x.shape),)


@dataclass(frozen=True)
class KVStore(Op):
    """Keys and values of the step's tokens, rounded to the cache's type and written to their places. No result.

    Int8: each head `[D]` has a scale `max|x| / 127`; codes are rounded to nearest even.
    """

    layer: int
    num_kv_heads: int
    head_dim: int
    opcode: ClassVar[str] = "kv_store"

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        k, v, _, blocks, _, _, *scales = inputs
        check_float_rows("the keys of kv_store", k, self.num_kv_heads * self.head_dim)
        check_float_rows("the values of kv_store", v, self.num_kv_heads * self.head_dim)
        _check_cache(blocks, scales, self.num_kv_heads, self.head_dim)
        return ()

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        k, v, offsets, blocks, cache_lengths, table, *scales = inputs
        layer, page_size = self.layer + context.layer, blocks.shape[3]
        for request in _requests(offsets, cache_lengths):
            pages = table[request.number, request.positions // page_size]
            slots = request.positions % page_size
            shape = (request.positions.size, self.num_kv_heads, self.head_dim)
            for plane, heads in enumerate((k[request.rows].reshape(shape), v[request.rows].reshape(shape))):
                if scales:
                    codes, scale = _codes(heads)
                    blocks[pages, plane, layer, slots] = codes
                    scales[0][pages, plane, layer, slots] = scale
                else:
                    blocks[pages, plane, layer, slots] = heads.astype(blocks.dtype)
        return ()


@dataclass(frozen=True)
class PagedAttention(Op):
    """Causal attention of the step's queries over the cached keys and values of their own request.

    `softmax(q·k * scale) · v` in float32; the query at position p sees the positions 0 to p, or the last `window` of
    them. With a `softcap` scores s become `softcap * tanh(s / softcap)` first. Query heads are served by KV heads in
    consecutive groups of `num_heads / num_kv_heads`.
    """

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int = 0
    softcap: float = 0.0
    opcode: ClassVar[str] = "paged_attention"

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        q, _, blocks, _, _, *scales = inputs
        check_float_rows("the queries of paged_attention", q, self.num_heads * self.head_dim)
        _check_cache(blocks, scales, self.num_kv_heads, self.head_dim)
        if self.num_heads % self.num_kv_heads:
            raise ShapeError("the queries of paged_attention", f"{self.num_heads} heads", f"{self.num_kv_heads} x n")
        if self.window < 0:
            raise ValueError(f"the window of paged_attention must be 0 (none) or more, got {self.window}")
        if not (math.isfinite(self.softcap) and self.softcap >= 0):
            raise ValueError(f"the softcap of paged_attention must be 0 (none) or more, got {self.softcap}")
        return (q,)

    def evaluate(self, inputs: Sequence[Array], context: EvaluationContext) -> tuple[Array, ...]:
        q, offsets, blocks, cache_lengths, table, *scales = inputs
        layer, page_size = self.layer + context.layer, blocks.shape[3]
        result = np.zeros_like(q)
        for request in _requests(offsets, cache_lengths):
            if not request.positions.size:
                continue
            seen = np.arange(request.positions[-1] + 1)
            places = (table[request.number, seen // page_size], seen % page_size)
            keys, values = (blocks[places[0], plane, layer, places[1]].astype(np.float32) for plane in (0, 1))
            if scales:
                keys *= scales[0][places[0], 0, layer, places[1]]
                values *= scales[0][places[0], 1, layer, places[1]]
            visible = seen <= request.positions[:, None]
            if self.window:
                visible &= seen > request.positions[:, None] - self.window
            result[request.rows] = self._attend(q[request.rows], keys, values, visible)
        return (result,)

    def _attend(self, q: Float32Array, keys: Float32Array, values: Float32Array, visible: Array) -> Float32Array:
        """One request: q `[n, heads * D]`, keys and values `[positions, kv_heads, D]`, visible `[n, positions]`."""
        group = self.num_heads // self.num_kv_heads
        queries = q.reshape(q.shape[0], self.num_kv_heads, group, self.head_dim)
        scores = np.einsum("nkgd,pkd->nkgp", queries, keys) * np.float32(self.scale)
        if self.softcap:
            scores = np.float32(self.softcap) * np.tanh(scores / np.float32(self.softcap))
        scores = np.where(visible[:, None, None, :], scores, np.float32(-np.inf))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = np.einsum("nkgp,pkd->nkgd", weights, values) / weights.sum(axis=-1)[..., None]
        return np.asarray(mixed.reshape(q.shape), dtype=np.float32)


def rope_angles(
    tokens: Value, offsets: Value, cache_lengths: Value, rope: RopeSpec, request_lengths: Value | None = None
) -> Value:
    """Cosines and sines for every token: float32 `[total_seq_len, rot_dim]`.

    Args:
        tokens: int64 `[total_seq_len]`; only its size matters.
        offsets: uint32 `[batch_size + 1]`.
        cache_lengths: uint32 `[batch_size]`, the position of each request's first row.
        rope: The rotary embedding.
        request_lengths: uint32 `[batch_size]`: the length that decides a request's frequencies.
    """
    lengths = () if request_lengths is None else (request_lengths,)
    return tokens.graph.add(RopeAngles(rope), tokens, offsets, cache_lengths, *lengths)[0]


def rope(x: Value, angles: Value, *, num_heads: int, head_dim: int, rot_dim: int, interleaved: bool) -> Value:
    """Queries or keys `[rows, num_heads * head_dim]`, rotated by their positions' angles."""
    return x.graph.add(Rope(num_heads, head_dim, rot_dim, interleaved), x, angles)[0]


def kv_store(
    k: Value, v: Value, offsets: Value, cache: KVCacheValues, *, layer: int, num_kv_heads: int, head_dim: int
) -> None:
    """Write rotated keys and values `[rows, num_kv_heads * head_dim]` to the cache, before attention reads them."""
    op = KVStore(layer, num_kv_heads, head_dim)
    k.graph.add(op, k, v, offsets, *cache.operands.values())


def paged_attention(
    q: Value,
    offsets: Value,
    cache: KVCacheValues,
    *,
    layer: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Value:
    """Attention of rotated queries over the cache: float32 `[rows, num_heads * head_dim]`.

    Args:
        q: `[rows, num_heads * head_dim]`.
        offsets: uint32 `[batch_size + 1]`.
        cache: Where keys and values are.
        layer: Which layer of the cache; within a subgraph counted from the call's.
        num_heads: Query heads.
        num_kv_heads: KV heads.
        head_dim: Elements of a head.
        scale: The whole factor on q·k.
        window: A query sees itself and the `window - 1` positions before it; None: all.
        softcap: Scores s become `softcap * tanh(s / softcap)`; None: they stay.
    """
    op = PagedAttention(layer, num_heads, num_kv_heads, head_dim, scale, window or 0, softcap or 0.0)
    return q.graph.add(op, q, offsets, *cache.operands.values())[0]
