"""A few thousand requests of all kinds: nothing breaks, nothing leaks. `make soak` goes on for an hour."""

from __future__ import annotations

import pytest

from soak import GROWTH_BYTES, run


@pytest.mark.slow
def test_soak() -> None:
    found = run(10_000, 900)
    assert not found["surprises"] and found["blocks_used"] == 0, found
    assert found["bytes_per_request"] <= GROWTH_BYTES, found
