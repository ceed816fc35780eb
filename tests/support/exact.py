"""float32 arithmetic with one rounding, in NumPy: what the kernels' fused operations are compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """a * b + c rounded once (through 64 bits of mantissa: a tie there is out of reach of seeded data)."""
    wide = np.longdouble
    return (a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(np.float32)


def same_bits(a: Floats, b: Floats) -> bool:
    """Equal bit for bit, where every NaN counts as the same."""
    equal = (a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))
    return a.shape == b.shape and bool(equal.all())
