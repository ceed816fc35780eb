"""What a comparison found, as JSON and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from picture import Bars, picture


@dataclass(frozen=True, slots=True)
class Measured:
    """One line, measured.

    Attributes:
        title: What it is, for people.
        unit: Of the values: `tokens/s`, `MB` or `s`. Of the latter two less is better.
        ours, theirs: One value per alternation.
        limit: What the machine allows, in the same unit; 0: not known.
        settings: The rival's, those that were best for the line.
    """

    title: str
    unit: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    limit: float
    settings: str

    @property
    def ratios(self) -> list[float]:
        """How many times better ours is, per alternation."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return [mine / other if self.unit == "tokens/s" else other / mine for mine, other in pairs]

    @property
    def ratio(self) -> float:
        """The median of `ratios`."""
        return statistics.median(self.ratios)

    @property
    def share(self) -> float:
        """Of the limit that ours reaches; 0 where none is known."""
        return statistics.median(self.ours) / self.limit if self.limit else 0.0

    @property
    def their_share(self) -> float:
        """Of the limit that the rival reaches."""
        return statistics.median(self.theirs) / self.limit if self.limit else 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run.

    Attributes:
        machine: Its processor and kind.
        variant: Puna's kernels.
        rival: The rival's version and features.
        threads: Of each side.
        load: The system's load before the run.
        limits: What the machine did at most, each the best over the run.
        limit_spread: Least and most read bandwidth that was measured.
        lines: What was measured.
    """

    machine: str
    variant: str
    rival: str
    threads: int
    load: float
    limits: dict[str, float]
    limit_spread: tuple[float, float]
    lines: Sequence[Measured]

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            **{name: value for name, value in asdict(self).items() if name != "lines"},
            "lines": [
                asdict(line) | {"ratio": line.ratio, "ratios": line.ratios, "share_of_limit": line.share}
                for line in self.lines
            ],
        }

    def as_markdown(self) -> str:
        """A table with a row per line, and what belongs to all of them."""
        rows = [
            "| line | Puna | llama.cpp | ratio (least – most) | of the limit, Puna · llama.cpp | its settings |",
            "| --- | ---: | ---: | ---: | ---: | --- |",
        ]
        for line in self.lines:
            share = f"{line.share:.0%} · {line.their_share:.0%}" if line.limit else "–"
            spread = f"{line.ratio:.2f} ({min(line.ratios):.2f} – {max(line.ratios):.2f})"
            values = [f"{_number(statistics.median(side))} {line.unit}" for side in (line.ours, line.theirs)]
            rows.append(f"| {line.title} | {values[0]} | {values[1]} | {spread} | {share} | {line.settings} |")
        return "\n".join([*rows, "", self.footing()])

    def footing(self) -> str:
        """The machine, in a sentence or two."""
        low, high = self.limit_spread
        limits = self.limits
        return (
            f"{self.machine}, Puna {self.variant}, llama.cpp {self.rival}, {self.threads} threads each, load before "
            f"{self.load:.2f}. Limits in the same run: memory {limits['read_gbps']:.1f} GB/s ({low:.1f} – {high:.1f}), "
            f"float32 {limits['f32_gflops']:,.0f} GFLOP/s, int8 {limits['int8_gops']:,.0f} GOP/s."
        )

    def as_svg(self) -> str:
        """The lines in tokens per second, as bars."""
        rows = [
            Bars(line.title, statistics.median(line.ours), statistics.median(line.theirs), line.ratio, line.share)
            for line in self.lines
            if line.unit == "tokens/s"
        ]
        return picture("Tokens per second, same file, same machine", f"{self.machine}, {self.threads} threads", rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
