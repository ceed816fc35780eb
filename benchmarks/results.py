"""What a comparison found, as JSON and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from picture import Bars, picture
from turns import Turns


@dataclass(frozen=True, slots=True)
class Measured:
    """One line, measured.

    Attributes:
        title: What it is, for people.
        unit: Of the values: `tokens/s`, `MB` or `s`. Of the latter two less is better.
        turns: Values of both sides.
        limit: What the machine allowed right then, in tokens per second; 0: not known.
        settings: The rival's, those that were best for the line.
    """

    title: str
    unit: str
    turns: Turns
    limit: float
    settings: str

    @property
    def ratios(self) -> list[float]:
        """How many times better ours is, per alternation."""
        pairs = zip(self.turns.ours, self.turns.theirs, strict=True)
        return [mine / other if self.unit == "tokens/s" else other / mine for mine, other in pairs]

    @property
    def ratio(self) -> float:
        """The median of `ratios`."""
        return statistics.median(self.ratios)

    @property
    def medians(self) -> tuple[float, float]:
        """Of our values and of theirs."""
        return statistics.median(self.turns.ours), statistics.median(self.turns.theirs)

    @property
    def shares(self) -> tuple[float, float]:
        """Of the limit that we and they reach; 0 where none is known."""
        ours, theirs = self.medians
        return (ours / self.limit, theirs / self.limit) if self.limit else (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run.

    Attributes:
        machine: Its processor and kind, for people.
        kind: The richest variant that the machine runs.
        variant: Puna's kernels.
        rival: Its name.
        version: The rival's version and how it was built.
        threads: Of each side.
        limits: What the machine did at most, each the best over the run. A line's own limit follows from what was
            measured right before and after it.
        read_spread: Least and most read bandwidth that was measured.
        lines: What was measured.
    """

    machine: str
    kind: str
    variant: str
    rival: str
    version: str
    threads: int
    limits: dict[str, float]
    read_spread: tuple[float, float]
    lines: Sequence[Measured]

    @property
    def name(self) -> str:
        """Of its file: the rival, the kind of machine, and the variant where that is another."""
        parts = [self.rival.lower().replace(".", ""), self.kind]
        return "-".join(parts if self.variant == self.kind else [*parts, self.variant])

    def as_json(self) -> dict[str, Any]:
        """Everything; values with five digits."""
        data = {name: value for name, value in asdict(self).items() if name != "lines"}
        data["limits"] = {name: _rounded(value) for name, value in self.limits.items()}
        data["read_spread"] = [_rounded(value) for value in self.read_spread]
        data["lines"] = [
            {
                "title": line.title,
                "unit": line.unit,
                "ours": [_rounded(value) for value in line.turns.ours],
                "theirs": [_rounded(value) for value in line.turns.theirs],
                "disturbance": round(line.turns.disturbance, 3),
                "limit": _rounded(line.limit),
                "settings": line.settings,
            }
            for line in self.lines
        ]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        """What `as_json` gave."""
        lines = [
            Measured(
                line["title"],
                line["unit"],
                Turns(tuple(line["ours"]), tuple(line["theirs"]), line["disturbance"]),
                line["limit"],
                line["settings"],
            )
            for line in data["lines"]
        ]
        low, high = data["read_spread"]
        return cls(**{**data, "lines": lines, "read_spread": (low, high)})

    def with_lines_of(self, later: Comparison) -> Comparison:
        """This run with lines that another run on the same machine measured anew.

        Raises:
            ValueError: It is of another machine, or of other programs.
        """
        same = ("name", "machine", "version", "threads")
        if any(getattr(self, name) != getattr(later, name) for name in same):
            raise ValueError(f"{self.machine}, {self.version} cannot be mixed with {later.machine}, {later.version}")
        lines = {line.title: line for line in self.lines} | {line.title: line for line in later.lines}
        if not any(line.limit for line in later.lines):  # memory or the start, which no limit is set beside
            return replace(self, lines=list(lines.values()))
        limits = {name: max(value, later.limits[name]) for name, value in self.limits.items()}
        low, high = (min(self.read_spread[0], later.read_spread[0]), max(self.read_spread[1], later.read_spread[1]))
        return replace(self, lines=list(lines.values()), limits=limits, read_spread=(low, high))

    def as_markdown(self) -> str:
        """A table with a row per line, and what belongs to all of them."""
        rows = [
            f"| line | Puna | {self.rival} | ratio (least – most) | of the limit, Puna · {self.rival} | its settings |",
            "| --- | ---: | ---: | ---: | ---: | --- |",
        ]
        for line in self.lines:
            share = "{:.0%} · {:.0%}".format(*line.shares) if line.limit else "–"
            spread = f"{line.ratio:.2f} ({min(line.ratios):.2f} – {max(line.ratios):.2f})"
            ours, theirs = (f"{figure(value)} {line.unit}" for value in line.medians)
            rows.append(f"| {line.title} | {ours} | {theirs} | {spread} | {share} | {line.settings} |")
        return "\n".join([*rows, "", self.footing()])

    def footing(self) -> str:
        """The machine, in a sentence or two."""
        low, high = self.read_spread
        limits = self.limits
        disturbance = max(line.turns.disturbance for line in self.lines)
        return (
            f"{self.machine}; Puna {self.variant}, {self.rival} {self.version}, {self.threads} threads each; other "
            f"processes had at most {disturbance:.0%} of the cores meanwhile. Limits, measured around each line: "
            f"memory {limits['read_gbps']:.1f} GB/s ({low:.1f} – {high:.1f}), "
            f"float32 {limits['f32_gflops']:,.0f} GFLOP/s, int8 {limits['int8_gops']:,.0f} GOP/s."
        )

    def as_svg(self) -> str:
        """All lines as bars."""
        rows = [
            Bars(line.title, line.unit, *line.medians, ratio=line.ratio, share=line.shares[0]) for line in self.lines
        ]
        footing = f"{self.machine}, {self.threads} threads; {self.rival} {self.version}"
        return picture("Same file, same machine, in turn", self.rival, footing, rows)


def figure(value: float) -> str:
    """Three digits or so."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
