"""A gate against slower kernels that holds on busy machines: speeds as shares of a calibration loop's, in the same run.

    python benchmarks/gate.py             compares with benchmarks/gate.json, status 1 if a kernel has become slower
    python benchmarks/gate.py --update    writes what was measured into it

Matrices fit the caches, so neighbours' memory traffic does not matter; one thread runs, and its arithmetic in registers
is measured between the kernels, so clock rates do not either. The best of many short slices counts on both sides.
Shares depend on the processor: one that is not in the file is measured and passes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from puna import _native

BASELINE: Final = Path(__file__).parent / "gate.json"
FORMATS: Final = ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K", "BF16")
ROW_COUNTS: Final = (1, 8, 64)
TOLERANCE: Final = 0.12  # of a share; above what repeated runs differ by on a busy machine
_SIZE: Final = 1024
_ROUNDS: Final = 12
_SLICE_S: Final = 0.006
_PROBE_S: Final = 0.025


def measure(variant: str) -> dict[str, float]:
    """Each kernel's best rate as a share of the best rate of the calibration loop, by `format/rows`."""
    draw = np.random.default_rng(0)
    cases: dict[str, tuple[Any, Any]] = {}
    for name in FORMATS:
        block, size, _partner = _native.format_info(name)
        row_bytes = _SIZE // block * size
        data = np.zeros((_SIZE, row_bytes), np.uint8)  # codes do not matter to the time
        matrix = _native.PackedMatrix(name, data, _SIZE, _SIZE, "auto", 1)
        for rows in ROW_COUNTS:
            cases[f"{name}/{rows}"] = matrix, draw.standard_normal((rows, _SIZE), np.float32)
    best = dict.fromkeys(cases, 0.0)
    peaks = {"f32": 0.0, "a8": 0.0}
    for _ in range(_ROUNDS):
        limits = _native.measure_limits(_PROBE_S, 1)
        peaks = {"f32": max(peaks["f32"], limits["f32_gflops"]), "a8": max(peaks["a8"], limits["int8_gops"])}
        for name, (matrix, x) in cases.items():
            best[name] = max(best[name], _rate(matrix, x, variant))
    return {name: round(best[name] / peaks[cases[name][0].partner], 4) for name in cases}


def _rate(matrix: Any, x: Any, variant: str) -> float:
    """10^9 operations per second of the best call in a short while."""
    shortest = float("inf")
    end = time.perf_counter() + _SLICE_S
    while (begin := time.perf_counter()) < end:
        _native.matmul([matrix], x, variant, 1)
        shortest = min(shortest, time.perf_counter() - begin)
    return 2 * float(x.shape[0]) * _SIZE * _SIZE / shortest / 1e9


def slower(measured: dict[str, float], expected: dict[str, float]) -> list[str]:
    """The kernels whose share fell by more than the tolerance, as sentences."""
    return [
        f"{name}: {measured[name]:.1%} of the calibration loop, {share:.1%} expected"
        for name, share in sorted(expected.items())
        if measured.get(name, 0.0) < share * (1 - TOLERANCE)
    ]


def main() -> int:
    """Measures all variants that this machine runs but the portable one, and compares."""
    parser = argparse.ArgumentParser(description="Compare the kernels' speed with what it was.")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(arguments.variant)))
        return 0
    baseline: dict[str, dict[str, float]] = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    cpu = _native.cpu_info()
    failed: list[str] = []
    for variant in (name for name in _native.supported_variants() if name != "scalar"):
        # The calibration loop is that of the default variant, so each variant has a process in which it is that.
        command = [sys.executable, __file__, "--variant", variant]
        output = subprocess.check_output(command, env=os.environ | {"PUNA_VARIANT": variant})
        measured: dict[str, float] = json.loads(output)
        key = f"{cpu['vendor']} {cpu['model']} {variant}"
        if arguments.update:
            baseline[key] = measured
        elif key not in baseline:
            print(f"{key}: not in {BASELINE.name}, nothing to compare with")
        else:
            worse = slower(measured, baseline[key])
            print(f"{key}: {len(measured)} kernels, {len(worse)} slower")
            failed += worse
    if arguments.update:
        BASELINE.write_text(json.dumps(baseline, indent=1, sort_keys=True) + "\n")
    print("\n".join(failed), end="\n" if failed else "")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
