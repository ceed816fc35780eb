"""Descriptions of what to compute: graphs, operations, weights."""

from puna.graph.device import DeviceRef

__all__ = ["DeviceRef"]
