"""Devices and the memory on them."""

from puna.driver.buffer import Buffer
from puna.driver.device import CPU, Accelerator, Device, DeviceSpec, accelerator_count, load_devices

__all__ = ["CPU", "Accelerator", "Buffer", "Device", "DeviceSpec", "accelerator_count", "load_devices"]
