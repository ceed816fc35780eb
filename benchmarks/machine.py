"""Which machine a figure belongs to."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Final

from puna import _native

_STAT: Final = Path("/proc/stat")
_KINDS: Final = {"avx2": "AVX2", "avx512": "AVX-512 with VNNI, no AMX", "amx": "AVX-512 with VNNI, and AMX"}


def kind_of_machine() -> str:
    """The richest variant that runs here: `avx2`, `avx512`, `amx`, `neon`, or `scalar`."""
    runnable = _native.supported_variants()
    return next((name for name in ("amx", "avx512", "avx2", "neon") if name in runnable), "scalar")


def machine_name() -> str:
    """The processor, its kind and its cores, for people."""
    cpu = _native.cpu_info()
    kind = kind_of_machine()
    name = cpu["model"] or cpu["vendor"] or platform.machine()
    return f"{name} ({_KINDS.get(kind, platform.machine())}; {len(cpu['affinity'])} cores)"


class Bystanders:
    """How much of the processors is used by anything but some processes, since the last time that was asked.

    Args:
        pids: Processes that do not count.
    """

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self._cores = os.cpu_count() or 1
        self._last = self._now()

    def share(self) -> float:
        """0: nothing else ran; 1: others had all cores."""
        last, self._last = self._last, self._now()
        wall = self._last[0] - last[0]
        return max(0.0, (self._last[1] - last[1]) / (wall * self._cores)) if wall > 0 else 0.0

    def _now(self) -> tuple[float, float]:
        ticks = os.sysconf("SC_CLK_TCK")
        # user, nice, system, idle, waiting for disks, interrupts, soft interrupts, stolen by the host's other guests
        user, nice, system, _idle, _disk, *interrupts = map(int, _STAT.read_text().split("\n", 1)[0].split()[1:9])
        own = 0
        for pid in self._pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            own += sum(map(int, fields[11:15]))  # user and system, of itself and of children that ended
        return time.monotonic(), (user + nice + system + sum(interrupts) - own) / ticks
