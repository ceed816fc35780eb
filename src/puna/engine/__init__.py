"""From a graph to a program that runs in one native call."""

from __future__ import annotations

from puna.engine.model import Model, TensorMetadata
from puna.engine.native_program import ActivationMemory, LoadReport, plan_activations
from puna.engine.replicated_model import ReplicatedModel
from puna.engine.session import InferenceSession
from puna.engine.trace import MachineLimits, Trace, TraceRecord

__all__ = [
    "ActivationMemory",
    "InferenceSession",
    "LoadReport",
    "MachineLimits",
    "Model",
    "ReplicatedModel",
    "TensorMetadata",
    "Trace",
    "TraceRecord",
    "plan_activations",
]
