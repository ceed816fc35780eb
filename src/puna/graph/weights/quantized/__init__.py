"""Checkpoints whose layers are stored as codes and scales in tensors of their own."""

from puna.graph.weights.quantized.checkpoint import SchemeOf, quantized_layers, read_quantized
from puna.graph.weights.quantized.schemes import AwqScheme, FloatScheme, GptqScheme, IntegerScheme, LayerScheme
from puna.graph.weights.quantized.weight import QuantizedWeight

__all__ = [
    "AwqScheme",
    "FloatScheme",
    "GptqScheme",
    "IntegerScheme",
    "LayerScheme",
    "QuantizedWeight",
    "SchemeOf",
    "quantized_layers",
    "read_quantized",
]
