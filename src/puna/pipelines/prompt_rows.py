"""`PromptRows`, `PromptReader`: what a step computed for a prompt, and who looks at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["PromptReader", "PromptRows"]


@dataclass(frozen=True, slots=True)
class PromptRows:
    """What a step computed for the tokens of a prompt that it read.

    Attributes:
        position: Where the first of them stands in the prompt.
        logits: float32 `[n, V]`, or None where the reader needs none.
        layers: Layer -> its outputs, float32 `[n, H]`, for the layers that the reader names.
    """

    position: int
    logits: npt.NDArray[np.float32] | None
    layers: Mapping[int, npt.NDArray[np.float32]]


class PromptReader(Protocol):
    """Looks at what the model computed for a prompt, chunk by chunk.

    After a preemption rows come again, with the same bits.
    """

    @property
    def first_position(self) -> int:
        """The first position that is needed; rows before it may be left out, when they are in the cache."""
        ...

    @property
    def needs_logits(self) -> bool:
        """Whether the logits of all rows are needed."""
        ...

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose outputs are needed, from 0; the number of layers stands for the output of the last norm."""
        ...

    def read(self, rows: PromptRows) -> None:
        """Takes the rows of a step."""
        ...
