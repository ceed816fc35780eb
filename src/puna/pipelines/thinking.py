"""`ThinkingSection`: whether the next token of an answer belongs to the model's reasoning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["ThinkingSection"]


@dataclass(frozen=True, slots=True)
class ThinkingSection:
    """The part of an answer between two marker tokens, of which the first ones count.

    Attributes:
        begin: The token that begins it.
        end: The token that ends it.
        is_open: Whether the prompt ends within it.
    """

    begin: int
    end: int
    is_open: bool

    def holds_next(self, output: npt.NDArray[np.int64]) -> bool:
        """Whether the token behind the generated ones (int64 `[n]`) belongs to it. The last marker does."""
        if not self.is_open:
            begins = np.flatnonzero(output == self.begin)
            if not len(begins):
                return False
            output = output[begins[0] + 1 :]
        return not bool((output == self.end).any())

    @classmethod
    def behind(cls, prompt: npt.NDArray[np.int64], begin: int, end: int) -> ThinkingSection:
        """The section of an answer to a prompt (int64 `[n]`): open if the prompt begins it and does not end it."""
        begins = np.flatnonzero(prompt == begin)
        is_open = len(begins) > 0 and not bool((prompt[begins[-1] :] == end).any())
        return cls(begin, end, is_open)
