"""What one step spent its time on, instruction by instruction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MachineLimits", "Trace", "TraceRecord"]


@dataclass(frozen=True, slots=True)
class MachineLimits:
    """What this machine reaches at best with the threads at hand.

    Attributes:
        read_gbps: Reading memory, in 10^9 bytes per second.
        f32_gflops: float32 arithmetic, in 10^9 operations per second.
        int8_gops: 8-bit integer arithmetic, in 10^9 operations per second.
    """

    read_gbps: float
    f32_gflops: float
    int8_gops: float


@dataclass(frozen=True, slots=True)
class TraceRecord:
    """One instruction of one step.

    Attributes:
        op: The instruction.
        name: What it works on.
        layer: The layer, or -1 outside of layers.
        seconds: How long it took.
        bytes: Bytes of weights, cache and activations that it had to move.
        flops: Arithmetic operations.
        share_of_limit: The larger of its shares of the machine's memory and arithmetic limits, 0 to about 1.
        waited: How long threads were without work meanwhile, summed over threads.
    """

    op: str
    name: str
    layer: int
    seconds: float
    bytes: int
    flops: int
    share_of_limit: float
    waited: float = 0.0

    @property
    def gbps(self) -> float:
        """10^9 bytes per second."""
        return self.bytes / self.seconds / 1e9 if self.seconds > 0 else 0.0

    @property
    def gflops(self) -> float:
        """10^9 operations per second."""
        return self.flops / self.seconds / 1e9 if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Trace:
    """The instructions of one step in the order in which they ran."""

    records: tuple[TraceRecord, ...]
    limits: MachineLimits

    @classmethod
    def from_program(cls, records: Iterable[Mapping[str, Any]], limits: MachineLimits) -> Trace:
        """A trace from what the native program noted."""
        return cls(tuple(_record(record, limits) for record in records), limits)

    @property
    def seconds(self) -> float:
        """Time of all instructions together."""
        return sum(record.seconds for record in self.records)

    def by_op(self) -> dict[str, tuple[int, float, int, int]]:
        """For each kind of instruction: how many, seconds, bytes, operations; the slowest kind first."""
        totals: dict[str, tuple[int, float, int, int]] = {}
        for record in self.records:
            count, seconds, moved, flops = totals.get(record.op, (0, 0.0, 0, 0))
            totals[record.op] = (count + 1, seconds + record.seconds, moved + record.bytes, flops + record.flops)
        return dict(sorted(totals.items(), key=lambda item: -item[1][1]))

    def chrome_events(self) -> list[dict[str, Any]]:
        """The step as events of Chrome's trace viewer (complete events, microseconds, one after the other)."""
        events: list[dict[str, Any]] = []
        start = 0.0
        for record in self.records:
            arguments = {
                "layer": record.layer,
                "bytes": record.bytes,
                "flops": record.flops,
                "GB/s": round(record.gbps, 3),
                "GFLOP/s": round(record.gflops, 3),
                "share of limit": round(record.share_of_limit, 4),
                "waited us": round(record.waited * 1e6, 3),
            }
            name = f"{record.op} {record.name}".rstrip()
            duration = record.seconds * 1e6
            events.append({"name": name, "cat": record.op, "ph": "X", "ts": start, "dur": duration, "pid": 1, "tid": 1})
            events[-1]["args"] = arguments
            start += duration
        return events

    def save_chrome_trace(self, path: str | Path) -> None:
        """Write the step to a file that chrome://tracing and Perfetto open.

        Raises:
            OSError: the file cannot be written.
        """
        document = {"traceEvents": self.chrome_events(), "displayTimeUnit": "ms"}
        Path(path).write_text(json.dumps(document), encoding="utf-8")


def _record(record: Mapping[str, Any], limits: MachineLimits) -> TraceRecord:
    seconds, moved, flops = float(record["seconds"]), int(record["bytes"]), int(record["flops"])
    share = 0.0
    if seconds > 0:
        peak = limits.int8_gops if record.get("is_int8", False) else limits.f32_gflops
        shares = [(moved, limits.read_gbps), (flops, peak)]
        share = max(amount / seconds / 1e9 / limit for amount, limit in shares if limit > 0)
    return TraceRecord(
        op=str(record["op"]),
        name=str(record.get("name", "")),
        layer=int(record["layer"]),
        seconds=seconds,
        bytes=moved,
        flops=flops,
        share_of_limit=share,
        waited=float(record.get("waited", 0.0)),
    )
