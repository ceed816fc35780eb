"""What configurations say of quantized layers."""

from puna.pipelines.lib.quantization.parse import read_quantization, with_quantized_layers
from puna.pipelines.lib.quantization.plan import QuantizationPlan

__all__ = ["QuantizationPlan", "read_quantization", "with_quantized_layers"]
