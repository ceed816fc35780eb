"""Devices: the one kind that Puna has, a group of CPU cores.

`Accelerator` exists because the documented interface has it, and says so.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from puna.errors import UnsupportedModelError

__all__ = ["CPU", "Accelerator", "Device", "DeviceSpec", "accelerator_count", "load_devices"]


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device as a configuration names it: number and kind (`"cpu"` or `"gpu"`)."""

    id: int
    device_type: str = "cpu"

    def __post_init__(self) -> None:
        if self.device_type not in ("cpu", "gpu"):
            raise ValueError(f"device type {self.device_type!r} is unknown; there is: cpu, gpu")
        if self.id < 0:
            raise ValueError(f"device number {self.id} is negative")

    @classmethod
    def cpu(cls, id: int = 0) -> DeviceSpec:
        """The CPU device with this number."""
        return cls(id, "cpu")

    @classmethod
    def accelerator(cls, id: int = 0) -> DeviceSpec:
        """The accelerator with this number."""
        return cls(id, "gpu")


class Device:
    """Something that holds buffers and runs programs. Equal and hashable by kind and number.

    Make a `CPU`; this class is what functions accept.
    """

    __slots__ = ("_id", "_label")

    def __init__(self, label: str, id: int) -> None:
        if id < 0:
            raise ValueError(f"device number {id} is negative")
        self._label = label
        self._id = id

    @property
    def label(self) -> str:
        """The kind of device, as in a device's text: `"cpu"`."""
        return self._label

    @property
    def id(self) -> int:
        """The number of the device among its kind."""
        return self._id

    @property
    def api(self) -> str:
        """The programming interface that drives the device: `"cpu"`."""
        return self._label

    @property
    def is_host(self) -> bool:
        """Whether the device works on the process's own memory."""
        return self._label == "cpu"

    @property
    def architecture_name(self) -> str:
        """The processor architecture, as the system names it: `x86_64`, `aarch64`."""
        return platform.machine()

    @property
    def stats(self) -> dict[str, int]:
        """`free_memory` and `total_memory` in bytes: the machine's or the container's, whichever is less."""
        return _memory_stats()

    def synchronize(self) -> None:
        """Waits for the work handed to the device. A CPU's work is done when the call that started it returns."""

    def can_access(self, other: Device) -> bool:
        """Whether this device can read the memory of `other`. All CPU devices share one memory."""
        return self.is_host and other.is_host

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and (self._label, self._id) == (other._label, other._id)

    def __hash__(self) -> int:
        return hash((self._label, self._id))

    def __str__(self) -> str:
        return f"{self._label}:{self._id}"

    def __repr__(self) -> str:
        return f"Device({self})"


class CPU(Device):
    """A group of CPU cores; number 0 is the group that everything uses unless told otherwise."""

    __slots__ = ()

    def __init__(self, id: int = 0) -> None:
        super().__init__("cpu", id)


class Accelerator(Device):
    """A GPU, in the documented interface. Puna has none: making one always fails.

    Raises:
        UnsupportedModelError: always.
    """

    __slots__ = ()

    def __init__(self, id: int = 0) -> None:
        raise UnsupportedModelError("device", f"gpu:{id}", supported="cpu")


def accelerator_count() -> int:
    """How many accelerators there are to use: none."""
    return 0


def load_devices(specs: Iterable[DeviceSpec]) -> list[Device]:
    """The devices that a configuration names.

    Raises:
        UnsupportedModelError: one of them is an accelerator.
    """
    return [CPU(spec.id) if spec.device_type == "cpu" else Accelerator(spec.id) for spec in specs]


def _memory_stats() -> dict[str, int]:
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
    total, free = (int(fields[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        limit = _read_number(Path(limit_file))
        if limit is not None and limit < total:
            total = limit
            free = min(free, max(0, limit - (_read_number(Path(used_file)) or 0)))
    return {"free_memory": free, "total_memory": total}


def _read_number(path: Path) -> int | None:
    """The number in a one-line system file; None where there is no file or no number (`max`)."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
