"""What a load showed of a server, as JSON, as a Markdown table, and as comma-separated values."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from puna.entrypoints.benchmark.load import Load, Seen

__all__ = ["LATENCIES", "LoadReport", "percentile"]

LATENCIES: Final = ("ttft", "tpot", "itl", "e2el")
_TITLES: Final = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "inter-token latency",
    "e2el": "end-to-end latency",
}


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` percent of all lie, between neighbours by a straight line; 0 of none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = (len(ordered) - 1) * share / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def latencies_ms(seen: Seen) -> dict[str, list[float]]:
    """Of an answered request, in milliseconds: one value each, of `itl` one for each piece of text after the first."""
    first, last = seen.times[0], seen.times[-1]
    values = {
        "ttft": [first - seen.sent],
        "tpot": [(last - first) / (seen.output_tokens - 1)] if seen.output_tokens > 1 else [],
        "itl": [after - before for before, after in zip(seen.times, seen.times[1:], strict=False)],
        "e2el": [last - seen.sent],
    }
    return {name: [value * 1e3 for value in found] for name, found in values.items()}


@dataclass(frozen=True, slots=True)
class LoadReport:
    """A run of `puna bench serve`.

    Attributes:
        base_url: Of the server.
        load: What was sent.
        seen: What was seen of each request.
        percentiles: Which are shown.
        goodput: Milliseconds that a good request takes at most, by names of `LATENCIES`.
    """

    base_url: str
    load: Load
    seen: Sequence[Seen]
    percentiles: Sequence[float]
    goodput: Mapping[str, float]

    @property
    def answered(self) -> list[Seen]:
        """Requests with a whole answer."""
        return [one for one in self.seen if one.failure is None]

    @property
    def failures(self) -> Counter[str]:
        """Why others have none, and how often."""
        return Counter(one.failure for one in self.seen if one.failure is not None)

    @property
    def duration_s(self) -> float:
        """Seconds from the first request to the end of the last answer; 0 if there is no answer."""
        answered = self.answered
        return max(one.ended for one in answered) - min(one.sent for one in self.seen) if answered else 0.0

    @property
    def num_good(self) -> int:
        """Requests within all bounds of `goodput`; one that has no value for a bound is within it."""
        return sum(self._is_good(one) for one in self.answered)

    def _is_good(self, one: Seen) -> bool:
        found = latencies_ms(one)
        return all(max(found[name], default=0.0) <= most for name, most in self.goodput.items())

    def per_s(self, count: float) -> float:
        """A count by the duration."""
        return count / self.duration_s if self.duration_s > 0 else 0.0

    def values_ms(self, name: str) -> list[float]:
        """All values of one of `LATENCIES`."""
        return [value for one in self.answered for value in latencies_ms(one)[name]]

    def as_json(self) -> dict[str, Any]:
        """As docs/schemas/bench-serve.json describes it."""
        load, answered = self.load, self.answered
        prompt, output = (sum(getattr(one, name) for one in answered) for name in ("prompt_tokens", "output_tokens"))
        return {
            "base_url": self.base_url,
            "model": load.model,
            "endpoint": "chat" if load.is_chat else "completions",
            "max_concurrency": load.max_concurrency,
            "request_rate": load.request_rate,
            "input_len": load.input_len,
            "output_len": load.output_len,
            "prefix_len": load.prefix_len,
            "num_prefixes": load.num_prefixes if load.prefix_len else 0,
            "seed": load.seed,
            "num_requests": len(self.seen),
            "num_answered": len(answered),
            "failures": dict(self.failures),
            "is_counted_by_server": all(one.is_counted for one in answered),
            "duration_s": round(self.duration_s, 4),
            "prompt_tokens": prompt,
            "output_tokens": output,
            "requests_per_s": round(self.per_s(len(answered)), 4),
            "output_tokens_per_s": round(self.per_s(output), 3),
            "total_tokens_per_s": round(self.per_s(prompt + output), 3),
            "goodput": (
                {"bounds_ms": dict(self.goodput), "num_good": self.num_good,
                 "requests_per_s": round(self.per_s(self.num_good), 4)}
                if self.goodput else None
            ),
            **{f"{name}_ms": self._summary(name) for name in LATENCIES},
        }  # fmt: skip

    def _summary(self, name: str) -> dict[str, float]:
        values = self.values_ms(name)
        found = {"mean": statistics.fmean(values) if values else 0.0}
        found |= {f"p{share:g}": percentile(values, share) for share in self.percentiles}
        return {key: round(value, 3) for key, value in found.items()}

    def as_markdown(self) -> str:
        """A table of latencies, and what else was seen below it."""
        heads = ["ms", "mean", *(f"p{share:g}" for share in self.percentiles)]
        rows = [heads]
        for name in LATENCIES:
            rows.append([f"{_TITLES[name]} ({name})", *(f"{value:.2f}" for value in self._summary(name).values())])
        widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
        lines = [
            "| " + " | ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            + " |"
            for row in rows
        ]  # fmt: skip
        bars = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        lines.insert(1, f"| {' | '.join(bars)} |")
        found = self.as_json()
        lines += [
            "",
            f"{found['model']} at {self.base_url}: {len(self.answered)} of {len(self.seen)} requests answered in "
            f"{self.duration_s:.2f} s.",
            f"{found['requests_per_s']:.2f} requests/s, {found['output_tokens_per_s']:.1f} output tokens/s, "
            f"{found['total_tokens_per_s']:.1f} tokens/s with prompts.",
        ]
        if self.goodput:
            bounds = ", ".join(f"{name} {most:g} ms" for name, most in self.goodput.items())
            lines.append(
                f"Goodput ({bounds}): {found['goodput']['requests_per_s']:.2f} requests/s, {self.num_good} requests."
            )
        if not found["is_counted_by_server"]:
            lines.append("The server did not count tokens; a piece of text was taken as one.")
        lines += [f"{count} failed: {why}" for why, count in self.failures.most_common()]
        return "\n".join(lines)

    def as_csv(self) -> str:
        """A row per request, with a heading; times in milliseconds."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        heads = ["sent_ms", "ttft_ms", "tpot_ms", "e2el_ms", "prompt_tokens", "output_tokens", "is_good", "failure"]
        writer.writerow(heads)
        begin = min((one.sent for one in self.seen), default=0.0)
        for one in self.seen:
            row: list[Any] = [round((one.sent - begin) * 1e3, 3)]
            if one.failure is not None:
                row += ["", "", "", "", "", "", one.failure]
            else:
                found = latencies_ms(one)
                row += [round(found[name][0], 3) if found[name] else "" for name in ("ttft", "tpot", "e2el")]
                row += [one.prompt_tokens, one.output_tokens, int(self._is_good(one)), ""]
            writer.writerow(row)
        return out.getvalue().rstrip("\n")
