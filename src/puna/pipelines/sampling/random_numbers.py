"""Random numbers that belong to one request alone: a function of (seed, choice, position).

They are made by the counter-based generator Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2,
3", 2011), so neither batch mates nor a preemption change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

_UInt64Array: TypeAlias = npt.NDArray[np.uint64]

_LOW: Final = np.uint64(0xFFFFFFFF)
_SHIFT: Final = np.uint64(32)
_HIGH_BITS: Final = np.uint64(5)  # of 32, so that 27 are left
_LOW_BITS: Final = np.uint64(6)
_FACTORS: Final = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_KEY_STEPS: Final = np.arange(10, dtype=np.uint64)[:, None, None] * np.array(
    [[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64
)


def uniforms(
    seeds: Sequence[int], choices: Sequence[int], positions: Sequence[int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Two numbers in [0, 1) per row, each float64 `[B]` with 53 random bits.

    Args:
        seeds: `[B]`, 0 to 2**64 - 1.
        choices: `[B]`: which of several continuations.
        positions: `[B]`: where the drawn token will stand.
    """
    keys = np.array([seeds, seeds], dtype=np.uint64)
    keys[0] &= _LOW
    keys[1] >>= _SHIFT
    places = np.array([positions, positions, choices, [0] * len(seeds)], dtype=np.uint64)
    places[0] &= _LOW
    places[1] >>= _SHIFT
    words = philox_4x32(places, keys)
    fractions = (words[::2] >> _HIGH_BITS) * 2.0**26 + (words[1::2] >> _LOW_BITS)
    fractions *= 2.0**-53
    return fractions[0], fractions[1]


def philox_4x32(counter: _UInt64Array, key: _UInt64Array) -> _UInt64Array:
    """Ten rounds of Philox on 32-bit words: counter uint64 `[4, B]`, key `[2, B]`; the result is as the counter."""
    keys = (key + _KEY_STEPS) & _LOW
    even, odd = counter[::2], counter[1::2]
    for round_key in keys:
        products = even * _FACTORS
        even, odd = (products[::-1] >> _SHIFT) ^ odd ^ round_key, products[::-1] & _LOW
    words = np.empty_like(counter)
    words[::2], words[1::2] = even, odd
    return words
