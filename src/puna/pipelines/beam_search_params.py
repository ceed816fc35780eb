"""`BeamSearchParams`: how the likeliest texts are searched for, instead of drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from puna.pipelines.ranges import require_integer, require_number
from puna.pipelines.sampling_ranges import MAX_CHOICES

__all__ = ["BeamSearchParams"]


@dataclass(frozen=True, kw_only=True)
class BeamSearchParams:
    """How the likeliest texts are searched for, instead of drawn.

    Attributes:
        beam_width: Texts that are kept at each step and returned at the end, 1 to 128.
        max_tokens: At most this many tokens each, from 1.
        length_penalty: Finished texts are ranked by their log-probability over `length ** length_penalty`; finite.
        early_stopping: True: ends when `beam_width` texts are finished. False: ends when no unfinished text can get
            better than the worst finished one.
        ignore_eos: End-of-sequence tokens do not finish a text.
        stop_token_ids: Further tokens that finish one.

    Raises:
        InvalidRequestError: a value is outside its range.
    """

    beam_width: int
    max_tokens: int
    length_penalty: float = 1.0
    early_stopping: bool = False
    ignore_eos: bool = False
    stop_token_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        require_integer("beam_width", self.beam_width, 1, MAX_CHOICES)
        require_integer("max_tokens", self.max_tokens, 1, None)
        require_number("length_penalty", self.length_penalty, -math.inf, math.inf, False)
        for token in self.stop_token_ids:
            require_integer("stop_token_ids", token, 0, None)
        object.__setattr__(self, "stop_token_ids", tuple(int(token) for token in self.stop_token_ids))
