"""Puna's side of a comparison: a worker over one model (see worker.py)."""

from __future__ import annotations

import sys
from typing import Any

from puna import _native
from puna.entrypoints.benchmark.runner import Runner
from puna.entrypoints.benchmark.specs import parse_spec
from worker import peak_bytes, serve


def main() -> None:
    """Arguments: the model, the threads, and the names of the tests that will be asked for."""
    model, threads, *names = sys.argv[1:]
    specs = {name: parse_spec(name) for name in names}
    runner = Runner(model, list(specs.values()), threads=int(threads))

    def warm(test: str) -> dict[str, Any]:
        runner.warm(specs[test])
        return {}

    def run(test: str) -> dict[str, Any]:
        return {"tokens_per_s": runner.run(specs[test])}

    def limits(seconds: float) -> dict[str, Any]:
        return dict(_native.measure_limits(seconds, int(threads)))

    greeting = {"variant": _native.default_variant(), "load_s": runner.load_s}
    serve(greeting, {"warm": warm, "run": run, "limits": limits, "peak": lambda: {"bytes": peak_bytes()}})


if __name__ == "__main__":
    main()
