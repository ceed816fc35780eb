"""`DeviceRef`: the name of a device in a description, before any device is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from puna.driver import CPU, Accelerator, Device

__all__ = ["DeviceRef"]

_KINDS: Final = ("cpu", "gpu")


@dataclass(frozen=True, slots=True)
class DeviceRef:
    """A symbolic device: a kind (`"cpu"` or `"gpu"`) and a number. Equal and hashable by both.

    Its text is `cpu:0`. A graph may name an accelerator; turning that name into a device is what fails, since Puna has
    CPUs only.

    Raises:
        ValueError: the kind is another one, or the number is negative.
    """

    device_type: str
    id: int = 0

    def __post_init__(self) -> None:
        if self.device_type not in _KINDS:
            raise ValueError(f"device type {self.device_type!r} is unknown; there is: {', '.join(_KINDS)}")
        if self.id < 0:
            raise ValueError(f"device number {self.id} is negative")

    @classmethod
    def CPU(cls, id: int = 0) -> DeviceRef:
        """The CPU device with this number."""
        return cls("cpu", id)

    @classmethod
    def GPU(cls, id: int = 0) -> DeviceRef:
        """The accelerator with this number."""
        return cls("gpu", id)

    @classmethod
    def from_device(cls, device: Device) -> DeviceRef:
        """The name of a device that is there."""
        return cls(device.label, device.id)

    def to_device(self) -> Device:
        """The device of this name.

        Raises:
            UnsupportedModelError: it is an accelerator.
        """
        return CPU(self.id) if self.is_cpu() else Accelerator(self.id)

    def is_cpu(self) -> bool:
        """Whether this names a CPU."""
        return self.device_type == "cpu"

    def is_gpu(self) -> bool:
        """Whether this names an accelerator."""
        return self.device_type == "gpu"

    def __str__(self) -> str:
        return f"{self.device_type}:{self.id}"
