"""Paged attention: values against float64, and equality of bits whatever else is computed at the same time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from support.native_steps import VARIANTS, Cache, Request, Rig, attend, bits, round_kv

Array = NDArray[Any]


@dataclass(frozen=True)
class Model:
    """Sizes of the attention of one layer."""

    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    dtype: str = "float32"
    window: int = 0
    scale: float = 0.31


def queries(model: Model, identity: int, request: Request) -> Array:
    """The queries of a request's new positions, which depend on request and position only."""
    generator = np.random.default_rng((7, identity))
    everything = generator.standard_normal((request.total, model.num_heads * model.head_dim), dtype=np.float32)
    return everything[request.cached :]


def run(
    model: Model,
    requests: list[Request],
    *,
    variant: str = VARIANTS[-1],
    threads: int = 1,
    page_size: int = 16,
    shuffle: int = 0,
    identities: list[int] | None = None,
) -> list[Array]:
    """One step of attention; the result of each request `[new, heads, D]`.

    The cache holds everything, the positions of this step too, as `rope_kv` would have left it.
    """
    filled = [Request(r.total, 0) for r in requests]
    cache = Cache(
        filled,
        page_size=page_size,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        dtype=model.dtype,
        shuffle=shuffle,
        identities=identities or list(range(len(requests))),
    )
    x = np.concatenate([queries(model, i, r) for i, r in zip(cache.identities, requests, strict=True)])
    rig, width = Rig(x, variant), x.shape[1]
    out = rig.buffer(width)
    rig.emit(
        "attention",
        x=rig.x,
        q_col=0,
        out=out,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        layer=0,
        scale=model.scale,
        window=model.window,
        softcap=0.0,
    )
    rig.output(out, width)
    offsets = np.cumsum([0] + [r.new for r in requests]).astype(np.uint32)
    inputs = {
        **cache.inputs(),
        "input_row_offsets": offsets,
        "cache_lengths": np.array([r.cached for r in requests], np.uint32),
    }
    result = rig.run(inputs, threads)[0].reshape(-1, model.num_heads, model.head_dim)
    return [result[offsets[b] : offsets[b + 1]] for b in range(len(requests))]


def expected(model: Model, request: Request, identity: int) -> Array:
    cache = Cache(
        [Request(request.total, 0)],
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        identities=[identity],
    )
    keys, values = (round_kv(part, model.dtype).astype(np.float64) for part in cache.history(0)[:, 0])
    q = queries(model, identity, request).reshape(-1, model.num_heads, model.head_dim)
    return attend(q, keys, values, np.arange(request.cached, request.total), scale=model.scale, window=model.window)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"),
    [(4, 4, 16), (9, 3, 64), (5, 1, 128), (2, 2, 40), (3, 1, 7), (40, 1, 16), (2, 1, 96), (1, 1, 256), (7, 1, 80)],
)
def test_equals_float64_in_every_variant(num_heads: int, num_kv_heads: int, head_dim: int, dtype: str) -> None:
    model = Model(num_heads, num_kv_heads, head_dim, dtype)
    requests = [Request(0, 5), Request(31, 2), Request(600, 1), Request(60, 40)]
    results = {variant: run(model, requests, variant=variant) for variant in VARIANTS}
    for b, request in enumerate(requests):
        # Scores are chains of head_dim steps; queries and weights on an int8 cache have 14 and 15 bits.
        found, exact = results[VARIANTS[0]][b], expected(model, request, b)
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-3 if dtype == "int8" else 1e-5, err_msg=f"request {b}")
    assert len({tuple(map(bits, result)) for result in results.values()}) == 1


@pytest.mark.parametrize("window", [1, 2, 31, 32, 33, 100, 512, 700, 5000])
def test_window(window: int) -> None:
    model = Model(window=window)
    requests = [Request(0, 70), Request(1030, 3), Request(510, 5)]
    results = run(model, requests, threads=2)
    for b, request in enumerate(requests):
        np.testing.assert_allclose(results[b], expected(model, request, b), rtol=2e-5, atol=2e-6)
    assert list(map(bits, results)) == list(map(bits, run(model, requests, variant=VARIANTS[0])))


models = st.builds(
    Model,
    num_kv_heads=st.sampled_from([1, 2, 3]),
    head_dim=st.sampled_from([16, 24, 64]),
    dtype=st.sampled_from(["float32", "float16", "bfloat16", "int8"]),
    window=st.sampled_from([0, 0, 5, 40, 600]),
).flatmap(lambda m: st.sampled_from([1, 2, 5]).map(lambda group: replace(m, num_heads=m.num_kv_heads * group)))
requests_of = st.builds(Request, st.sampled_from([0, 1, 30, 31, 32, 100, 511, 512, 513, 1100]), st.integers(1, 45))


@given(
    model=models,
    requests=st.lists(requests_of, min_size=1, max_size=4),
    threads=st.sampled_from([2, 5]),
    page_size=st.sampled_from([1, 3, 16, 32, 128]),
    shuffle=st.integers(0, 100),
    variant=st.sampled_from(VARIANTS),
    cut=st.integers(0, 44),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_bits_do_not_depend_on_batch_chunks_threads_pages_or_variant(
    model: Model, requests: list[Request], threads: int, page_size: int, shuffle: int, variant: str, cut: int
) -> None:
    together = run(model, requests, threads=threads, page_size=page_size, shuffle=shuffle, variant=variant)
    for b, request in enumerate(requests):
        alone = run(model, [request], identities=[b])[0]
        assert bits(alone) == bits(together[b]), "alone = in the batch"
        if request.new > 1:
            first = Request(request.cached, 1 + cut % (request.new - 1))
            parts = [first, Request(first.total, request.total - first.total)]
            chunks = [run(model, [part], threads=threads, identities=[b])[0] for part in parts]
            assert bits(np.concatenate(chunks)) == bits(together[b]), "chunked = whole"


def test_one_row_over_many_splits_equals_rows_of_a_prompt() -> None:
    """Decoding divides the positions among threads, a prompt does not."""
    model = Model(num_heads=6, num_kv_heads=2, head_dim=32, dtype="float16")
    prompt = run(model, [Request(2000, 40)])[0]
    for row in (0, 17, 39):
        for threads in (1, 2, 5):
            one = run(model, [Request(2000 + row, 1)], threads=threads)[0]
            assert bits(one) == bits(prompt[row : row + 1])


def test_what_is_not_finite_stays_in_its_request() -> None:
    """A key, value or query that overflowed must not reach earlier rows, nor other requests."""
    model = Model(num_heads=2, num_kv_heads=1, head_dim=16)
    request = Request(40, 4)
    clean = run(model, [request])[0]
    filled = Cache([Request(44, 0)], num_kv_heads=1, head_dim=16)
    filled.blocks[filled.table[0, 43 // 16], :, 0, 43 % 16] = np.inf
    x = queries(model, 0, request)
    rig = Rig(x, VARIANTS[-1])
    out = rig.buffer(32)
    sizes = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "layer": 0}
    rig.emit("attention", x=rig.x, q_col=0, out=out, scale=model.scale, window=0, softcap=0.0, **sizes)
    rig.output(out, 32)
    offsets = np.array([0, 4], np.uint32)
    inputs = {**filled.inputs(), "input_row_offsets": offsets, "cache_lengths": np.array([40], np.uint32)}
    result = rig.run(inputs)[0].reshape(4, 2, 16)
    assert bits(result[:3]) == bits(clean[:3])
    assert not np.isfinite(result[3]).all()
