"""GLU, sums, factors, limits and moved columns: values against NumPy, and their bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.native_steps import VARIANTS, Rig, bits, random_rows

Array = NDArray[Any]
Case = Callable[[Rig, int], int]
"""Emits instructions that read `width` (or twice as many) columns of `rig.x`; returns the buffer of the result."""


def glu(rig: Rig, width: int) -> int:
    out = rig.buffer(width)
    rig.emit("glu", x=rig.x, width=width, out=out, out_a8=-1, activation="silu")
    return out


def gelu(rig: Rig, width: int) -> int:
    out = rig.buffer(width)
    rig.emit("glu", x=rig.x, width=width, out=out, out_a8=-1, activation="gelu_tanh")
    return out


def softcap(rig: Rig, width: int) -> int:
    rig.emit("softcap", x=rig.x, col=0, width=width, cap=0.7)
    return rig.x


def add(rig: Rig, width: int) -> int:
    second, out = rig.buffer(width), rig.buffer(width)
    rig.emit("copy", x=rig.x, col=width, out=second, out_col=0, width=width)
    rig.emit("add", a=rig.x, b=second, out=out, width=width, multiplier=0.22)
    return out


def add_in_place(rig: Rig, width: int) -> int:
    second = rig.buffer(width)
    rig.emit("copy", x=rig.x, col=width, out=second, out_col=0, width=width)
    rig.emit("add", a=rig.x, b=second, out=rig.x, width=width, multiplier=0.22)
    return rig.x


def scale(rig: Rig, width: int) -> int:
    rig.emit("scale", x=rig.x, out=rig.x, width=width, multiplier=0.3, divide=False)
    return rig.x


def divide(rig: Rig, width: int) -> int:
    out = rig.buffer(width)
    rig.emit("scale", x=rig.x, out=out, width=width, multiplier=0.3, divide=True)
    return out


def clamp(rig: Rig, width: int) -> int:
    rig.emit("clamp", x=rig.x, col=0, width=width, limit=0.5)
    return rig.x


def gelu_tanh(x: Array) -> Array:
    # (1 + tanh(u)) / 2, without the cancellation where u is far below 0
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


CASES: dict[str, tuple[Case, Callable[[Array, Array], Array]]] = {
    "glu": (glu, lambda a, b: a / (1 + np.exp(-a.astype(np.float64))) * b),
    "gelu": (gelu, lambda a, b: gelu_tanh(a.astype(np.float64)) * b),
    "softcap": (softcap, lambda a, b: np.float32(0.7) * np.tanh(a.astype(np.float64) / np.float32(0.7))),
    "add": (add, lambda a, b: a + np.float32(0.22).astype(np.float64) * b),
    "add_in_place": (add_in_place, lambda a, b: a + np.float32(0.22).astype(np.float64) * b),
    "scale": (scale, lambda a, b: a * np.float32(0.3)),
    "divide": (divide, lambda a, b: a / np.float32(0.3)),
    "clamp": (clamp, lambda a, b: np.clip(a, -0.5, 0.5)),
}


def run(case: Case, x: Array, variant: str, threads: int = 1) -> Array:
    width = x.shape[1] // 2
    rig = Rig(x, variant)
    rig.output(case(rig, width), width)
    return rig.run(threads=threads)[0]


@pytest.mark.parametrize("width", [1, 16, 23, 96])
@pytest.mark.parametrize("name", CASES)
def test_equals_numpy_and_every_variant_has_the_same_bits(name: str, width: int) -> None:
    case, reference = CASES[name]
    x = random_rows(4, 2 * width)
    results = [run(case, x, variant) for variant in VARIANTS]
    wanted = reference(x[:, :width], x[:, width:])
    np.testing.assert_allclose(results[0], wanted, rtol=2e-5 if name == "gelu" else 1e-6, atol=1e-30)
    if name in ("scale", "divide", "clamp"):
        assert bits(results[0]) == bits(wanted.astype(np.float32))
    assert len({bits(result) for result in results}) == 1


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("name", CASES)
def test_a_row_has_the_same_bits_in_every_batch(name: str, threads: int) -> None:
    case, _ = CASES[name]
    x = random_rows(11, 60)
    whole = run(case, x, VARIANTS[-1], threads)
    for row in range(11):
        assert bits(run(case, x[row : row + 1], VARIANTS[-1])) == bits(whole[row : row + 1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_clamp_keeps_nan(variant: str) -> None:
    x = np.array([[np.nan, np.inf, -np.inf, 0.25, 0, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(run(clamp, x, variant), np.array([[np.nan, 0.5, -0.5, 0.25]], np.float32))


@pytest.mark.parametrize("variant", VARIANTS)
def test_glu_of_extreme_gates(variant: str) -> None:
    gate = np.array([-1e30, -200, -88, 0, 88, 200, 1e30, np.nan], np.float32)
    x = np.concatenate([gate, np.full(8, 2, np.float32)])[None]
    result = run(glu, x, variant)[0]
    np.testing.assert_array_equal(result[[0, 1, 3]], 0)
    assert -1e-35 < result[2] <= 0
    np.testing.assert_allclose(result[4:7], 2 * gate[4:7], rtol=1e-6)
    assert np.isnan(result[7])


@pytest.mark.parametrize("variant", VARIANTS)
def test_subnormals_are_flushed_alike(variant: str) -> None:
    """Results and operands below 2**-126 count as 0, in every thread and variant."""
    x = np.array([[1e-40, 1e-30, 1e-38, 1, 0, 0, 0, 0]], np.float32)
    rig = Rig(x, variant)
    rig.emit("scale", x=rig.x, out=rig.x, width=4, multiplier=1e-9, divide=False)
    rig.output(rig.x, 4)
    np.testing.assert_array_equal(rig.run()[0], np.array([[0, 0, 0, 1e-9]], np.float32))


def test_copy_moves_columns_within_and_between_buffers() -> None:
    x = random_rows(3, 10)
    rig = Rig(x, VARIANTS[-1])
    out = rig.buffer(12)
    rig.emit("copy", x=rig.x, col=3, out=out, out_col=5, width=7)
    rig.emit("copy", x=rig.x, col=0, out=out, out_col=0, width=5)
    rig.emit("copy", x=rig.x, col=1, out=rig.x, out_col=0, width=9)  # overlapping
    rig.output(out, 12)
    rig.output(rig.x, 10)
    joined, shifted = rig.run()
    assert bits(joined) == bits(np.concatenate([x[:, :5], x[:, 3:]], axis=1))
    assert bits(shifted) == bits(np.concatenate([x[:, 1:], x[:, 9:]], axis=1))
