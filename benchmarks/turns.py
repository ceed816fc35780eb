"""Two sides that take turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

CALM: Final = 0.08  # of the processors, used by others during an alternation
_EXTRA: Final = 3  # so many alternations are made again at most


class Turns(NamedTuple):
    """Values of alternations.

    Attributes:
        ours, theirs: One per alternation.
        disturbance: The largest share of the processors that something else had during one of them.
    """

    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    disturbance: float


class Watch(Protocol):
    """Tells how much others ran since the last time it was asked."""

    def share(self) -> float:
        """0: not at all; 1: on all cores."""


def take_turns(ours: Callable[[], float], theirs: Callable[[], float], reps: int, watch: Watch) -> Turns:
    """Runs both sides `reps` times each, one after the other, and changes who begins.

    Alternations that others disturbed are made again, but no more than three; the calmest count.
    """
    taken: list[tuple[float, float, float]] = []
    watch.share()
    while len(taken) < reps + _EXTRA and sum(turn[2] <= CALM for turn in taken) < reps:
        if len(taken) % 2 == 0:
            mine = ours()
            other = theirs()
        else:
            other = theirs()
            mine = ours()
        taken.append((mine, other, watch.share()))
    # Chosen by their calm alone, never by what was measured.
    kept = sorted(sorted(range(len(taken)), key=lambda turn: taken[turn][2])[:reps])
    return Turns(
        tuple(taken[turn][0] for turn in kept),
        tuple(taken[turn][1] for turn in kept),
        max(taken[turn][2] for turn in kept),
    )
