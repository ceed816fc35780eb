"""The kernel variants a test runs on: all that were compiled, those this machine cannot run as skips that say so."""

from __future__ import annotations

import pytest

from puna import _native

SUPPORTED: list[str] = list(_native.supported_variants())

VARIANTS = [
    pytest.param(
        variant,
        marks=() if variant in SUPPORTED else pytest.mark.skip(reason=f"this machine cannot run the {variant} kernels"),
    )
    for variant in _native.compiled_variants()
]

SCALAR_IS_SLOW = [
    pytest.param(*item.values, marks=[*item.marks, *([pytest.mark.slow] if item.values[0] == "scalar" else [])])
    for item in VARIANTS
]


def is_on_tiles(variant: str, format: str) -> bool:
    """Whether a variant multiplies BF16 weights in an order of its own, as docs/numerics.md says of amx."""
    return variant == "amx" and format == "BF16"
