"""Encodings of quantized weights."""

from puna.graph.quantization.encoding import BlockParameters, QuantizationEncoding

__all__ = ["BlockParameters", "QuantizationEncoding"]
