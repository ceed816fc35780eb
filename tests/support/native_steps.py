"""Random steps for native programs: ragged requests, a paged cache, and float64 answers to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna import _native

Array = NDArray[Any]
VARIANTS: tuple[str, ...] = tuple(_native.supported_variants())
"""Every variant that this machine can run; the others are named in the report at the end of a run."""


@dataclass(frozen=True)
class Request:
    """One request of a step: how much of it is cached, how much is new."""

    cached: int
    new: int

    @property
    def total(self) -> int:
        return self.cached + self.new


@dataclass
class Cache:
    """A page pool with random contents, and the pages of some requests in random order.

    Keys and values of position p of request b are the same whatever the page size, the order of pages and the other
    requests: they come from `seed` and the request's `identity`.
    """

    requests: list[Request]
    layers: int = 1
    page_size: int = 16
    num_kv_heads: int = 1
    head_dim: int = 16
    dtype: str = "float32"
    seed: int = 0
    shuffle: int = 0
    identities: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.identities:
            self.identities = list(range(len(self.requests)))
        needed = [-(-r.total // self.page_size) for r in self.requests]
        count = sum(needed) + 2
        order = np.random.default_rng(self.shuffle).permutation(count - 1)
        self.table = np.full((len(self.requests), max([*needed, 1])), count - 1, np.uint32)
        shape = (count, 2, self.layers, self.page_size, self.num_kv_heads, self.head_dim)
        blocks = np.full(shape, np.nan, np.float32)  # whoever reads what was never written shows it
        start = 0
        for b, (request, pages) in enumerate(zip(self.requests, needed, strict=True)):
            self.table[b, :pages] = order[start : start + pages]
            start += pages
            history = self.history(b)
            for position in range(request.cached):
                page, slot = self.table[b, position // self.page_size], position % self.page_size
                blocks[page, :, :, slot] = history[:, :, position]
        self.scales: Array | None = None
        if self.dtype == "int8":
            self.blocks, self.scales = codes_of_heads(blocks)
        else:
            self.blocks = _as_kv(blocks, self.dtype)

    def history(self, b: int) -> Array:
        """Keys and values `[2, layers, total, num_kv_heads, head_dim]` of a request, rounded to the cache's type."""
        generator = np.random.default_rng((self.seed, self.identities[b]))
        shape = (8192, 2, self.layers, self.num_kv_heads, self.head_dim)
        total = self.requests[b].total
        values = generator.standard_normal((total, *shape[1:]), dtype=np.float32)
        return np.moveaxis(round_kv(values, self.dtype), 0, 2)

    @property
    def offsets(self) -> Array:
        return np.cumsum([0] + [r.new for r in self.requests]).astype(np.uint32)

    def inputs(self) -> dict[str, Array]:
        """The inputs of a step that the cache decides."""
        return {
            "input_row_offsets": self.offsets,
            "cache_lengths": np.array([r.cached for r in self.requests], np.uint32),
            "kv_blocks": self.blocks,
            "lookup_table": self.table,
            **({} if self.scales is None else {"kv_scales": self.scales}),
        }

    def stored(self, b: int, layer: int = 0) -> tuple[Array, Array]:
        """Keys and values `[total, num_kv_heads, head_dim]` that the pages hold now, as float64."""
        positions = np.arange(self.requests[b].total)
        pages, slots = self.table[b, positions // self.page_size], positions % self.page_size
        held = self.blocks.astype(np.float64) * (1 if self.scales is None else self.scales)
        return held[pages, 0, layer, slots], held[pages, 1, layer, slots]


def _as_kv(values: Array, dtype: str) -> Array:
    if dtype == "bfloat16":
        import ml_dtypes

        return values.astype(ml_dtypes.bfloat16)
    return values.astype(dtype)


def codes_of_heads(values: Array) -> tuple[Array, Array]:
    """Heads `[..., D]` as int8 codes and a float32 scale each, `[..., 1]`: max|x| / 127, to nearest even."""
    largest = np.abs(values).max(axis=-1, keepdims=True)
    scale = (largest / np.float32(127)).astype(np.float32)
    scale[scale < np.finfo(np.float32).tiny] = 0
    is_good = np.isfinite(scale) & (scale > 0)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=is_good)
    codes = np.rint(np.where(is_good, values, 0) * inverse).astype(np.int8)
    return codes, np.where(np.isfinite(largest), scale, np.float32(np.nan)).astype(np.float32)


def round_kv(values: Array, dtype: str) -> Array:
    """Float32 values as a cache of this type keeps them."""
    if dtype == "int8":
        codes, scales = codes_of_heads(values)
        return codes.astype(np.float32) * scales
    return _as_kv(values, dtype).astype(np.float32)


def attend(
    q: Array, keys: Array, values: Array, positions: Array, *, scale: float, window: int = 0, softcap: float = 0.0
) -> Array:
    """Attention in float64: q `[n, heads, D]`, keys and values `[total, kv_heads, D]`, positions `[n]`."""
    group = q.shape[1] // keys.shape[1]
    out = np.empty(q.shape, np.float64)
    for i, position in enumerate(positions):
        begin = max(0, position + 1 - window) if window else 0
        for head in range(q.shape[1]):
            k, v = keys[begin : position + 1, head // group], values[begin : position + 1, head // group]
            scores = k @ q[i, head].astype(np.float64) * scale
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            weights = np.exp(scores - scores.max())
            out[i, head] = weights @ v / weights.sum()
    return out


def bits(array: Array) -> bytes:
    """The bytes of an array, for comparisons that tell -0 from 0."""
    return np.ascontiguousarray(array).tobytes()


class Rig:
    """A program whose tokens are the rows of a matrix: instructions under test read what they hold from buffer `x`.

    Args:
        x: float32 `[T, width]`, what the rows of `x` are.
        variant: Which kernels.
    """

    def __init__(self, x: Array, variant: str) -> None:
        self.rows, width = x.shape
        self.program = _native.Program(variant)
        self.x = self.program.buffer("T", 4 * width)
        self._outputs: list[tuple[str, int]] = []
        table = np.ascontiguousarray(x, np.float32) if self.rows else np.zeros((1, width), np.float32)
        matrix = _native.PackedMatrix("F32", table, max(self.rows, 1), width, threads=1)
        self.emit("embed", weight=self.program.weight(matrix), out=self.x, scale=1.0)

    def buffer(self, width: int, rows: str = "T") -> int:
        """A float32 buffer."""
        return self.program.buffer(rows, 4 * width)  # type: ignore[arg-type]

    def codes(self, width: int) -> int:
        """An int8 buffer with rows T."""
        return self.program.buffer("T", _native.a8_row_bytes(width))

    def vector(self, values: Array | None) -> int:
        """A weight vector, -1 for None."""
        return -1 if values is None else self.program.weight(np.ascontiguousarray(values, np.float32))

    def emit(self, op: str, **fields: object) -> None:
        """Append an instruction."""
        self.program.emit(op, **fields)

    def output(self, buffer: int, width: int, rows: str = "T", col: int = 0) -> None:
        """Return these columns."""
        index = len(self._outputs)
        self.emit("copy_out", x=buffer, col=col, width=width, output=index, out_col=0, rows=rows)
        self._outputs.append((rows, width))

    def run(self, inputs: Mapping[str, Array] | None = None, threads: int = 1) -> list[Array]:
        """Finish the program where that was not done yet, execute it, and return the outputs."""
        if not self._finished:
            self.program.finish()
            self._finished = True
        given = {"input_row_offsets": np.array([0, self.rows], np.uint32), **(inputs or {})}
        batch = len(given["input_row_offsets"]) - 1
        count = int(given["return_n_logits"][0]) if "return_n_logits" in given else 0
        sizes = {"T": self.rows, "B": batch, "R": batch * count}
        outputs = [np.full((sizes[rows], width), np.nan, np.float32) for rows, width in self._outputs]
        self.program.execute({"tokens": np.arange(self.rows, dtype=np.int64), **given}, outputs, threads)
        return outputs

    _finished = False


def random_rows(rows: int, width: int, seed: int = 0) -> Array:
    """Gaussian rows with a few large and a few tiny values; row r is the same whatever the number of rows."""
    out = np.empty((rows, width), np.float32)
    for row in range(rows):
        generator = np.random.default_rng((seed, row))
        out[row] = generator.standard_normal(width, dtype=np.float32)
        out[row, generator.integers(width, size=max(1, width // 50))] *= np.float32(30)
        out[row, generator.integers(width, size=max(1, width // 50))] *= np.float32(1e-6)
    return out
