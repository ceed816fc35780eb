"""`FilterValues`: temperature and filters of a request as plain numbers, of which a step makes one array."""

from __future__ import annotations

from typing import NamedTuple


class FilterValues(NamedTuple):
    """What a draw needs to know of `SamplingParams`; the defaults filter nothing."""

    temperature: float = 1.0
    top_k: float = -1
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: float = 0.0
