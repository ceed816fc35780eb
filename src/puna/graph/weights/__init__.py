"""Reading checkpoints: safetensors and GGUF files, their tensors by name, without copying them."""

from puna.graph.weights.gguf import GGUFWeights
from puna.graph.weights.load import WeightsFormat, find_weight_files, load_weights, weights_format
from puna.graph.weights.quantize import QUANTIZER_VERSION, DeferredQuantization, quantized_pieces
from puna.graph.weights.safetensors import SafetensorWeights
from puna.graph.weights.string_list import StringList
from puna.graph.weights.weight_data import WeightData
from puna.graph.weights.weights import Weights, WeightsAdapter

__all__ = [
    "QUANTIZER_VERSION",
    "DeferredQuantization",
    "GGUFWeights",
    "SafetensorWeights",
    "StringList",
    "WeightData",
    "Weights",
    "WeightsAdapter",
    "WeightsFormat",
    "find_weight_files",
    "load_weights",
    "quantized_pieces",
    "weights_format",
]
