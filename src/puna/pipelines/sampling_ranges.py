"""Ranges of the numeric fields of `SamplingParams`."""

from __future__ import annotations

import math
from typing import Final, Literal

__all__ = ["INTEGERS", "MAX_CHOICES", "MAX_LOGPROBS", "MAX_STOPS", "NUMBERS", "field_range"]

MAX_LOGPROBS: Final = 20
"""How many likeliest tokens can be asked for at each position."""

MAX_CHOICES: Final = 128
"""How many continuations of one prompt can be asked for; also the widest beam."""

MAX_STOPS: Final = 16
"""How many stop strings a request may have."""

_MAX_SEED: Final = (1 << 64) - 1

INTEGERS: Final[dict[str, tuple[int, int | None]]] = {  # from, to (None: there is no end)
    "n": (1, MAX_CHOICES),
    "best_of": (1, MAX_CHOICES),
    "max_tokens": (1, None),
    "min_tokens": (0, None),
    "top_k": (-1, None),
    "mirostat": (0, 2),
    "penalty_window": (1, None),
    "no_repeat_ngram_size": (0, None),
    "dry_allowed_length": (1, None),
    "dry_window": (1, None),
    "seed": (0, _MAX_SEED),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
    "truncate_prompt_tokens": (-1, None),
}
NUMBERS: Final[dict[str, tuple[float, float, bool]]] = {  # from, to, whether the lower end is left out
    "temperature": (0, 2, False),
    "thinking_temperature": (0, 2, False),
    "top_p": (0, 1, False),
    "min_p": (0, 1, False),
    "typical_p": (0, 1, True),
    "top_n_sigma": (0, math.inf, False),
    "xtc_probability": (0, 1, False),
    "xtc_threshold": (0, 1, False),
    "mirostat_tau": (0, math.inf, True),
    "mirostat_eta": (0, 1, True),
    "presence_penalty": (-2, 2, False),
    "frequency_penalty": (-2, 2, False),
    "repetition_penalty": (0, math.inf, True),
    "dry_multiplier": (0, math.inf, False),
    "dry_base": (1, math.inf, False),
    "deadline_s": (0, math.inf, True),
}


def field_range(name: str) -> tuple[Literal["integer", "number"], float | None, float | None, bool]:
    """The range of a numeric field: its kind, its ends (None: there is none), and whether the lower one is left out."""
    if name in INTEGERS:
        return "integer", *INTEGERS[name], False
    low, high, is_open = NUMBERS[name]
    return "number", low, None if math.isinf(high) else high, is_open
