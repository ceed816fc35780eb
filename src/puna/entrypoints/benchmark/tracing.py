"""Traced tests as one file for a trace viewer, and as a table that says where the time went."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.engine.trace import TraceRecord
from puna.entrypoints.benchmark.runner import TracedStep

__all__ = ["SummaryRow", "summary_rows", "write_chrome_trace"]


def write_chrome_trace(path: Path, tests: Mapping[str, Sequence[TracedStep]]) -> None:
    """Writes a file that chrome://tracing and Perfetto open.

    Every test is a process; its first row shows steps as the loop sees them, its second row the instructions, which
    begin together with the step. The end of a step that no instruction covers is scheduling and sampling.

    Raises:
        OSError: The file cannot be written.
    """
    events: list[dict[str, Any]] = []
    for process, (name, steps) in enumerate(tests.items(), start=1):
        events.append(_label("process_name", process, 0, name))
        events += [_label("thread_name", process, row, text) for row, text in ((1, "loop"), (2, "instructions"))]
        start = 0.0
        for number, step in enumerate(steps, start=1):
            outer = {"name": f"step {number}", "cat": "step", "ph": "X", "ts": start, "dur": step.seconds * 1e6}
            events.append(outer | {"pid": process, "tid": 1, "args": {"native ms": round(step.trace.seconds * 1e3, 4)}})
            for event in step.trace.chrome_events():
                events.append(event | {"pid": process, "tid": 2, "ts": start + event["ts"]})
            start += step.seconds * 1e6
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")


def _label(kind: str, process: int, thread: int, text: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": text}}


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """An instruction and what it works on, all layers and steps together.

    Attributes:
        name: The instruction; `loop` is what no instruction covers.
        count: How often it ran.
        seconds: How long that took.
        waited: How long threads were without work meanwhile, summed over threads.
        gbps: 10^9 bytes per second.
        gflops: 10^9 operations per second.
        share_of_limit: The larger of its shares of the machine's memory and arithmetic limits.
    """

    name: str
    count: int
    seconds: float
    waited: float = 0.0
    gbps: float = 0.0
    gflops: float = 0.0
    share_of_limit: float = 0.0


def summary_rows(steps: Sequence[TracedStep]) -> list[SummaryRow]:
    """Where the time of some steps went, the slowest first."""
    whole = sum(step.seconds for step in steps)
    groups: dict[str, list[TraceRecord]] = {}
    for step in steps:
        for record in step.trace.records:
            groups.setdefault(f"{record.op} {record.name}".rstrip(), []).append(record)
    rows = [SummaryRow("loop", len(steps), whole - sum(step.trace.seconds for step in steps))]
    for name, records in groups.items():
        seconds = sum(record.seconds for record in records)
        rate = 1 / seconds if seconds > 0 else 0.0
        rows.append(
            SummaryRow(
                name,
                len(records),
                seconds,
                sum(record.waited for record in records),
                sum(record.bytes for record in records) * rate / 1e9,
                sum(record.flops for record in records) * rate / 1e9,
                sum(record.share_of_limit * record.seconds for record in records) * rate,
            )
        )
    return sorted(rows, key=lambda row: -row.seconds)
