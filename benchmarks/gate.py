"""A gate against slower kernels that holds on busy machines: speeds as shares of a calibration loop's, in the same run.

    python benchmarks/gate.py             compares with benchmarks/gate.json, status 1 if a kernel has become slower
    python benchmarks/gate.py --update    writes what was measured into it

Matrices fit the caches, so neighbours' memory traffic does not matter; one thread runs, and its arithmetic in registers
is measured between the kernels, so clock rates do not either. The best of many short slices counts on both sides, and
a kernel is slower only if it is in three measurements. Shares depend on the processor: one that is not in the file has
nothing to be compared with, and passes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from puna import _native

BASELINE: Final = Path(__file__).parent / "gate.json"
FORMATS: Final = ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K", "BF16")
ROW_COUNTS: Final = (1, 8, 64)
TOLERANCE: Final = 0.12  # of a share; above what repeated runs differ by on a busy machine
ATTEMPTS: Final = 3
_FLOATS: Final = ("F32", "F16", "BF16")
_SIZE: Final = 1024
_ROUNDS: Final = 12
_SLICE_S: Final = 0.006
_PROBE_S: Final = 0.025


class Rates(NamedTuple):
    """Best rates, in 10^9 operations per second.

    Attributes:
        kernels: By `format/rows`.
        peaks: Of the calibration loops, by what is multiplied: `f32` or `a8`.
    """

    kernels: dict[str, float]
    peaks: dict[str, float]

    def shares(self) -> dict[str, float]:
        """Each kernel's rate as a share of the loop's that does the same arithmetic."""
        return {
            name: rate / self.peaks["f32" if name.startswith(_FLOATS) else "a8"] for name, rate in self.kernels.items()
        }

    def best(self, other: Rates) -> Rates:
        """The better of two measurements, rate by rate."""
        kernels, peaks = (
            {name: max(rate, theirs[name]) for name, rate in ours.items()}
            for ours, theirs in zip(self, other, strict=True)
        )
        return Rates(kernels, peaks)


def measure(variant: str) -> Rates:
    """Measures all kernels of the variant that this process calibrates with."""
    draw = np.random.default_rng(0)
    cases: dict[str, tuple[Any, Any]] = {}
    for name in FORMATS:
        matrix = _native.PackedMatrix(name, _blocks(name, _SIZE), _SIZE, _SIZE, "auto", 1)
        for rows in ROW_COUNTS:
            cases[f"{name}/{rows}"] = matrix, draw.standard_normal((rows, _SIZE), np.float32)
    best = dict.fromkeys(cases, 0.0)
    peaks = {"f32": 0.0, "a8": 0.0}
    for _ in range(_ROUNDS):
        limits = _native.measure_limits(_PROBE_S, 1)
        peaks = {"f32": max(peaks["f32"], limits["f32_gflops"]), "a8": max(peaks["a8"], limits["int8_gops"])}
        for name, (matrix, x) in cases.items():
            best[name] = max(best[name], _rate(matrix, x, variant))
    return Rates(best, peaks)


def _blocks(kernel: str, rows: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Bytes of a matrix; codes do not matter to the time."""
    block, size, _partner = _native.format_info(kernel.partition("/")[0])
    return np.zeros((rows, _SIZE // block * size), np.uint8)


def _rate(matrix: Any, x: Any, variant: str) -> float:
    """10^9 operations per second of the best call in a short while."""
    shortest = float("inf")
    end = time.perf_counter() + _SLICE_S
    while (begin := time.perf_counter()) < end:
        _native.matmul([matrix], x, variant, 1)
        shortest = min(shortest, time.perf_counter() - begin)
    return 2 * float(x.shape[0]) * _SIZE * _SIZE / shortest / 1e9


def slower(shares: Mapping[str, float], expected: Mapping[str, float]) -> list[str]:
    """The kernels whose share fell by more than the tolerance, or that are gone, as sentences."""
    return [
        f"{name}: {shares.get(name, 0.0):.1%} of the calibration loop, {share:.1%} expected"
        for name, share in sorted(expected.items())
        if shares.get(name, 0.0) < share * (1 - TOLERANCE)
    ]


def compare(measured: Callable[[], Rates], expected: Mapping[str, float]) -> list[str]:
    """Measures until no kernel is slower than expected, at most three times, and returns those that still are."""
    rates = measured()
    for _ in range(ATTEMPTS - 1):
        if not slower(rates.shares(), expected):
            break
        rates = rates.best(measured())
    return slower(rates.shares(), expected)


def processor() -> str:
    """What shares are a property of: vendor, family and model, since names can be as general as `AMD EPYC`."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0].splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    names = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part")
    return " ".join([platform.machine(), *(fields[name] for name in names if name in fields)])


def _measure_apart(variant: str) -> Rates:
    """Measures in a process whose calibration loop is that of the variant."""
    command = [sys.executable, __file__, "--variant", variant]
    output = subprocess.check_output(command, env=os.environ | {"PUNA_VARIANT": variant})
    return Rates(*json.loads(output))


def main() -> int:
    """Measures all variants that this machine runs but the portable one, and compares."""
    parser = argparse.ArgumentParser(description="Compare the kernels' speed with what it was.")
    parser.add_argument("--update", action="store_true", help="write what is measured, instead of comparing")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(arguments.variant)))
        return 0
    baseline: dict[str, dict[str, float]] = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    failed: list[str] = []
    for variant in (name for name in _native.supported_variants() if name != "scalar"):
        key = f"{processor()}, {variant}"
        if arguments.update:
            rates = _measure_apart(variant)
            for _ in range(ATTEMPTS - 1):
                rates = rates.best(_measure_apart(variant))
            baseline[key] = {name: round(share, 4) for name, share in rates.shares().items()}
        elif key not in baseline:
            print(f"{key}: not in {BASELINE.name}, nothing to compare with")
        else:
            worse = compare(partial(_measure_apart, variant), baseline[key])
            print(f"{key}: {len(baseline[key])} kernels, {len(worse)} slower")
            failed += [f"{key}: {sentence}" for sentence in worse]
    if arguments.update:
        BASELINE.write_text(json.dumps(baseline, indent=1, sort_keys=True) + "\n")
    print("\n".join(failed), end="\n" if failed else "")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
