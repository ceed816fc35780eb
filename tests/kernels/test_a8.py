"""int8 activations: codes, scales and scaled sums against NumPy, on every variant."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from puna import _native
from support.exact import same_bits
from support.variants import VARIANTS


def expected(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    """The rule of csrc/quant/a8.h for finite x."""
    blocks = x.reshape(x.shape[0], -1, 32)
    d = np.abs(blocks).max(axis=2) / np.float32(127)
    d[d < np.finfo(np.float32).tiny] = 0
    inverse = np.zeros_like(d)
    np.divide(np.float32(1), d, out=inverse, where=d > 0)
    codes = np.rint(blocks * inverse[..., None])
    return codes.astype(np.int8).reshape(x.shape), d, d * codes.sum(axis=2)


def assert_quantized(x: NDArray[np.float32], variant: str) -> None:
    codes, d, sums = _native.quantize_a8(x, variant)
    expected_codes, expected_d, expected_sums = expected(x)
    assert np.array_equal(codes, expected_codes)
    assert same_bits(d, expected_d)
    assert same_bits(sums, expected_sums)


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_rows(variant: str) -> None:
    random = np.random.default_rng(3)
    sizes = np.exp(random.uniform(-60, 60, (40, 1))).astype(np.float32)
    assert_quantized(random.standard_normal((40, 416), dtype=np.float32) * sizes, variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ties_round_to_even(variant: str) -> None:
    x = np.linspace(-127, 127, 32 * 17, dtype=np.float32).reshape(1, -1)
    x = np.round(x * 2) / 2
    x[:, ::32] = 127  # d = 1: every half is a tie
    codes, d, _ = _native.quantize_a8(x, variant)
    assert (d == 1).all()
    assert np.array_equal(codes, np.rint(x).astype(np.int8))


@pytest.mark.parametrize("variant", VARIANTS)
def test_zero_and_tiny_blocks_are_zero(variant: str) -> None:
    x = np.zeros((3, 64), dtype=np.float32)
    x[1] = 1e-45
    x[2, :32] = 1e-36  # its d is subnormal
    codes, d, sums = _native.quantize_a8(x, variant)
    assert not codes.any() and not d.any() and not sums.any()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_visible(variant: str, bad: float) -> None:
    x = np.ones((2, 96), dtype=np.float32)
    x[1, 40] = bad
    codes, d, sums = _native.quantize_a8(x, variant)
    assert np.isnan(d).tolist() == [[False, False, False], [False, True, False]]
    assert not codes[1, 32:64].any() and np.isnan(sums[1]).tolist() == [False, True, False]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="32"):
        _native.quantize_a8(np.zeros((1, 33), dtype=np.float32), "scalar")
    with pytest.raises((ValueError, RuntimeError), match="altivec"):
        _native.quantize_a8(np.zeros((1, 32), dtype=np.float32), "altivec")
