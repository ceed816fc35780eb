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


def uniforms(
    seeds: Sequence[int], choices: Sequence[int], positions: Sequence[int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Two numbers in [0, 1) per row, each float64 `[B]` with 53 random bits.

    Args:
        seeds: `[B]`, 0 to 2**64 - 1.
        choices: `[B]`: which of several continuations.
        positions: `[B]`: where the drawn token will stand.
    """
    keys = np.array(seeds, dtype=np.uint64)
    places = np.array(positions, dtype=np.uint64)
    numbers = np.array(choices, dtype=np.uint64)
    zeros = np.zeros(len(keys), dtype=np.uint64)
    words = philox_4x32((places & _LOW, places >> _SHIFT, numbers & _LOW, zeros), (keys & _LOW, keys >> _SHIFT))
    return _fraction(words[0], words[1]), _fraction(words[2], words[3])


def philox_4x32(
    counter: tuple[_UInt64Array, _UInt64Array, _UInt64Array, _UInt64Array], key: tuple[_UInt64Array, _UInt64Array]
) -> tuple[_UInt64Array, _UInt64Array, _UInt64Array, _UInt64Array]:
    """Ten rounds of Philox on 32-bit words that are held in uint64 arrays `[B]`."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _round in range(10):
        p0 = c0 * np.uint64(0xD2511F53)
        p1 = c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW
        k0 = (k0 + np.uint64(0x9E3779B9)) & _LOW
        k1 = (k1 + np.uint64(0xBB67AE85)) & _LOW
    return c0, c1, c2, c3


def _fraction(high: _UInt64Array, low: _UInt64Array) -> npt.NDArray[np.float64]:
    upper, lower = high >> np.uint64(5), low >> np.uint64(6)
    return (upper.astype(np.float64) * 2.0**26 + lower.astype(np.float64)) * 2.0**-53
