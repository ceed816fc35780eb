"""What was measured, as JSON, as a Markdown table, and as comma-separated values."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Report", "Result"]


@dataclass(frozen=True, slots=True)
class Result:
    """What one test gave.

    Attributes:
        test: Its name.
        values: One per repetition: tokens per second, or seconds for `start`.
    """

    test: str
    values: Sequence[float]

    @property
    def unit(self) -> str:
        """The key of its values in JSON."""
        return "seconds" if self.test == "start" else "tokens_per_s"

    @property
    def median(self) -> float:
        """The value in the middle."""
        return statistics.median(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation of the repetitions; 0 for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """A run of `puna bench`.

    Attributes:
        model: The name that was given.
        variant: The kernels.
        threads: How many threads worked on a step.
        load_s: Seconds from nothing to a model that can be run.
        peak_rss_bytes: The most memory that the process had in use before the machine was measured.
        results: The tests, in the order in which they were asked for.
        limits: What the machine does at most (`read_gbps`, `f32_gflops`, `int8_gops`).
        bounds: Tokens per second that these allow for a prompt, and for one sequence's text; None: not known.
    """

    model: str
    variant: str
    threads: int
    load_s: float
    peak_rss_bytes: int
    results: Sequence[Result]
    limits: dict[str, float]
    bounds: tuple[float, float] | None = None

    def as_json(self) -> dict[str, Any]:
        """As docs/schemas/bench.json describes it."""
        return {
            "model": self.model,
            "variant": self.variant,
            "threads": self.threads,
            "load_s": round(self.load_s, 4),
            "peak_rss_bytes": self.peak_rss_bytes,
            "results": [
                {"test": result.test, result.unit: [round(value, 4) for value in result.values]}
                for result in self.results
            ],
            "limits": {name: round(value, 2) for name, value in self.limits.items()},
        }

    def as_markdown(self) -> str:
        """A table with a row per test, and what belongs to all of them below it."""
        rows = [("test", "median", "deviation", "unit")]
        for result in self.results:
            digits = 3 if result.unit == "seconds" else 2
            unit = "s" if result.unit == "seconds" else "tokens/s"
            rows.append((result.test, f"{result.median:.{digits}f}", f"{result.deviation:.{digits}f}", unit))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = []
        for row in rows:
            cells = [row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].rjust(widths[2]), row[3].ljust(widths[3])]
            lines.append(f"| {' | '.join(cells)} |")
        bars = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:3]), "-" * widths[3]]
        lines.insert(1, f"| {' | '.join(bars)} |")
        limits = self.limits
        lines += [
            "",
            f"{self.model}, {self.variant}, {self.threads} thread{'s' if self.threads > 1 else ''}; loaded in "
            f"{self.load_s:.2f} s, at most {self.peak_rss_bytes / 1e6:,.0f} MB in use.",
            f"This machine: reads {limits['read_gbps']:.1f} GB/s; float32 {limits['f32_gflops']:,.0f} GFLOP/s, int8 "
            f"{limits['int8_gops']:,.0f} GOP/s.",
        ]
        if self.bounds is not None:
            prompt, text = self.bounds
            lines.append(
                f"That allows {prompt:,.0f} tokens/s of a prompt and {text:,.1f} tokens/s of one sequence's text, by "
                "the matrices alone."
            )
        return "\n".join(lines)

    def as_csv(self) -> str:
        """A row per repetition, with a heading."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(
            ["model", "variant", "threads", "load_s", "peak_rss_bytes", "test", "repetition", "unit", "value"]
        )
        for result in self.results:
            for number, value in enumerate(result.values, start=1):
                row = [self.model, self.variant, self.threads, round(self.load_s, 4), self.peak_rss_bytes]
                writer.writerow([*row, result.test, number, result.unit, round(value, 4)])
        return out.getvalue().rstrip("\n")
