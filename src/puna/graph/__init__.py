"""Descriptions of what to compute: graphs, operations, weights."""

from __future__ import annotations

from puna.graph import ops
from puna.graph.device import DeviceRef
from puna.graph.graph import Call, Graph, Node
from puna.graph.type import BATCH_SIZE, LOGIT_ROWS, TOTAL_SEQ_LEN, Dim, DimLike, Shape, TensorType
from puna.graph.value import Value, Weight

__all__ = [
    "BATCH_SIZE",
    "LOGIT_ROWS",
    "TOTAL_SEQ_LEN",
    "Call",
    "DeviceRef",
    "Dim",
    "DimLike",
    "Graph",
    "Node",
    "Shape",
    "TensorType",
    "Value",
    "Weight",
    "ops",
]
