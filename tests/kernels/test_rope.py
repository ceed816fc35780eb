"""Rotary angles, rotation, and the store of keys and values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from puna import _native
from support.native_steps import VARIANTS, Cache, Request, Rig, bits, random_rows, round_kv

Array = NDArray[Any]


def inv_freq(rot_dim: int, theta: float = 10000.0) -> Array:
    return (1 / theta ** (np.arange(0, rot_dim, 2) / rot_dim)).astype(np.float32)


def angles_of(
    kind: str, parameters: dict[str, object], requests: list[Request], lengths: list[int] | None = None
) -> Array:
    """The result of `rope_angles` for the rows of these requests."""
    offsets = np.cumsum([0] + [r.new for r in requests]).astype(np.uint32)
    rig = Rig(np.zeros((int(offsets[-1]), 1), np.float32), VARIANTS[-1])
    rope = rig.program.rope(kind, parameters)
    rot_dim = 2 * len(np.atleast_1d(parameters.get("inv_freq", parameters.get("short_inv_freq", 0))))  # type: ignore[arg-type]
    rot_dim = int(parameters.get("rot_dim", rot_dim))  # type: ignore[call-overload]
    out = rig.buffer(rot_dim)
    rig.emit("rope_angles", rope=rope, out=out)
    rig.output(out, rot_dim)
    inputs = {"input_row_offsets": offsets, "cache_lengths": np.array([r.cached for r in requests], np.uint32)}
    if lengths is not None:
        inputs["request_lengths"] = np.array(lengths, np.uint32)
    return rig.run(inputs)[0]


def expected_angles(positions: list[int], frequencies: Array, factor: float = 1.0) -> Array:
    angles = (np.array(positions, np.float32)[:, None] * frequencies).astype(np.float64)
    cosine, sine = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return np.concatenate([cosine, sine], axis=1) * np.float32(factor)


def test_fixed_angles_are_correctly_rounded() -> None:
    frequencies = inv_freq(64)
    positions = [0, 1, 2, 511, 4096, 131071, 1_000_000]
    result = angles_of("fixed", {"inv_freq": frequencies, "attention_factor": 1.25}, [Request(p, 1) for p in positions])
    assert bits(result) == bits(expected_angles(positions, frequencies, 1.25))


@given(st.lists(st.integers(0, 1_048_576), min_size=1, max_size=4), st.floats(1e-6, 4.0))
@settings(max_examples=40, deadline=None)
def test_angles_of_any_position(positions: list[int], frequency: float) -> None:
    frequencies = np.array([frequency], np.float32)
    result = angles_of("fixed", {"inv_freq": frequencies, "attention_factor": 1.0}, [Request(p, 1) for p in positions])
    np.testing.assert_array_max_ulp(result, expected_angles(positions, frequencies), maxulp=1)


def test_longrope_takes_the_long_factors_above_the_original_length() -> None:
    short, long = inv_freq(8), inv_freq(8) / 7
    parameters = {
        "short_inv_freq": short,
        "long_inv_freq": long,
        "original_max_position": 10,
        "attention_factor": 1.1902380714238083,
    }
    requests = [Request(7, 3), Request(8, 3), Request(0, 1)]
    result = angles_of("longrope", parameters, requests)
    factor = 1.1902380714238083
    assert bits(result[:3]) == bits(expected_angles([7, 8, 9], short, factor))
    assert bits(result[3:6]) == bits(expected_angles([8, 9, 10], long, factor))
    # The length that is passed beside the cache decides, whatever the batch mates.
    result = angles_of("longrope", parameters, requests, [11, 10, 4096])
    assert bits(result[:3]) == bits(expected_angles([7, 8, 9], long, factor))
    assert bits(result[3:6]) == bits(expected_angles([8, 9, 10], short, factor))
    assert bits(result[6:]) == bits(expected_angles([0], long, factor))


@pytest.mark.parametrize("length", [5, 100, 101, 777])
def test_dynamic_takes_its_base_from_the_length(length: int) -> None:
    theta, factor, original, dim = 10000.0, 4.0, 100, 16
    parameters = {
        "theta": theta,
        "factor": factor,
        "original_max_position": original,
        "rot_dim": dim,
        "attention_factor": 1.0,
    }
    effective = max(length, original)
    base = theta * (factor * effective / original - (factor - 1)) ** (dim / (dim - 2))
    frequencies = np.array([1 / base ** (2 * j / dim) for j in range(dim // 2)], np.float32)
    result = angles_of("dynamic", parameters, [Request(3, 2)], [length])
    assert bits(result) == bits(expected_angles([3, 4], frequencies))


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        ("yarn", {}, "unknown rope kind 'yarn'"),
        ("fixed", {"attention_factor": 1.0}, "'inv_freq' is missing"),
        ("fixed", {"inv_freq": [1.0], "attention_factor": 1.0}, "inv_freq"),
        ("fixed", {"inv_freq": np.array([np.inf], np.float32), "attention_factor": 1.0}, "must be finite throughout"),
        ("fixed", {"inv_freq": np.zeros(0, np.float32), "attention_factor": 1.0}, "must hold 1 to 512 values"),
        ("fixed", {"inv_freq": inv_freq(4), "attention_factor": math.nan}, "must be finite"),
        ("fixed", {"inv_freq": inv_freq(4), "attention_factor": 1.0, "theta": 1.0}, "unknown field 'theta'"),
        (
            "longrope",
            {
                "short_inv_freq": inv_freq(4),
                "long_inv_freq": inv_freq(6),
                "original_max_position": 1,
                "attention_factor": 1.0,
            },
            "short_inv_freq has 2 values, long_inv_freq 3",
        ),
        (
            "dynamic",
            {"theta": -1.0, "factor": 1.0, "original_max_position": 1, "rot_dim": 8, "attention_factor": 1.0},
            "'theta' must be positive",
        ),
        (
            "dynamic",
            {"theta": 1.0, "factor": 1.0, "original_max_position": 1, "rot_dim": 7, "attention_factor": 1.0},
            "'rot_dim' must be even",
        ),
    ],
)
def test_wrong_specifications_are_refused(kind: str, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _native.Program(VARIANTS[-1]).rope(kind, parameters)


def rotate(heads: Array, angles: Array, rot_dim: int, interleaved: bool) -> Array:
    """Float32 twin: heads `[T, n, D]`."""
    half = rot_dim // 2
    cosine, sine = angles[:, None, :half], angles[:, None, half:]
    first = slice(0, rot_dim, 2) if interleaved else slice(0, half)
    second = slice(1, rot_dim, 2) if interleaved else slice(half, rot_dim)
    out = heads.copy()
    out[..., first] = heads[..., first] * cosine - heads[..., second] * sine
    out[..., second] = heads[..., first] * sine + heads[..., second] * cosine
    return out


def rope_and_store(cache: Cache, x: Array, variant: str, threads: int = 1, **sizes: Any) -> tuple[Array, Array]:
    """Rows after `rope_kv`, and the angles; the cache is written to."""
    heads, dim, kv_heads = sizes["num_heads"], cache.head_dim, cache.num_kv_heads
    rot_dim = sizes.get("rot_dim", dim)
    rig = Rig(x, variant)
    angles = rig.buffer(rot_dim)
    rope = rig.program.rope("fixed", {"inv_freq": inv_freq(rot_dim), "attention_factor": 1.0})
    rig.emit("rope_angles", rope=rope, out=angles)
    rig.emit(
        "rope_kv",
        x=rig.x,
        q_col=0,
        k_col=heads * dim,
        v_col=(heads + kv_heads) * dim,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=dim,
        rot_dim=rot_dim,
        interleaved=sizes.get("interleaved", False),
        angles=angles,
        layer=sizes.get("layer", 0),
    )
    rig.output(rig.x, x.shape[1])
    rig.output(angles, rot_dim)
    rows, angle_rows = rig.run(cache.inputs(), threads)
    return rows, angle_rows


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize(("dim", "rot_dim"), [(4, 4), (64, 64), (80, 80), (64, 24), (10, 6)])
def test_rotates_and_stores(variant: str, interleaved: bool, dtype: str, dim: int, rot_dim: int) -> None:
    heads, kv_heads, layer = 4, 2, 1
    requests = [Request(5, 3), Request(0, 9), Request(30, 1)]
    cache = Cache(requests, layers=3, page_size=4, num_kv_heads=kv_heads, head_dim=dim, dtype=dtype)
    before = cache.blocks.copy()
    x = random_rows(13, (heads + 2 * kv_heads) * dim)
    rows, angles = rope_and_store(
        cache, x, variant, num_heads=heads, rot_dim=rot_dim, interleaved=interleaved, layer=layer
    )
    split = x.reshape(13, heads + 2 * kv_heads, dim)
    q = rotate(split[:, :heads], angles, rot_dim, interleaved)
    k = rotate(split[:, heads : heads + kv_heads], angles, rot_dim, interleaved)
    assert bits(rows[:, : heads * dim]) == bits(q.reshape(13, -1))
    assert bits(rows[:, heads * dim :]) == bits(x[:, heads * dim :])  # keys are rotated on the way, not in place
    touched = np.zeros(before.shape, bool)
    for b, request in enumerate(requests):
        keys, values = cache.stored(b, layer)
        new = slice(cache.offsets[b], cache.offsets[b + 1])
        assert bits(keys[request.cached :].astype(np.float32)) == bits(round_kv(k[new], dtype))
        assert bits(values[request.cached :].astype(np.float32)) == bits(
            round_kv(split[new, heads + kv_heads :], dtype)
        )
        for position in range(request.cached, request.total):
            touched[cache.table[b, position // 4], :, layer, position % 4] = True
    assert bits(cache.blocks[~touched]) == bits(before[~touched])


@pytest.mark.parametrize("interleaved", [False, True])
def test_known_rotation(interleaved: bool) -> None:
    wanted = [-1.142640, 1.922076, 2.959851, 4.029800] if interleaved else [-1.984111, 1.959901, 2.462378, 4.019800]
    cache = Cache([Request(1, 1)], head_dim=4)
    x = np.tile(np.array([1, 2, 3, 4], np.float32), 3)[None]
    rows, _ = rope_and_store(cache, x, VARIANTS[-1], num_heads=1, interleaved=interleaved)
    np.testing.assert_allclose(rows[0, :4], wanted, atol=1e-6)
    np.testing.assert_allclose(cache.stored(0)[0][1, 0], wanted, atol=1e-6)


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_do_not_matter(threads: int) -> None:
    results = []
    for count in (1, threads):
        cache = Cache([Request(5, 30), Request(0, 9)], num_kv_heads=2, head_dim=20, dtype="float16")
        rows, _ = rope_and_store(cache, random_rows(39, 140), VARIANTS[-1], count, num_heads=3)
        results.append((bits(rows), bits(cache.blocks)))
    assert results[0] == results[1]
