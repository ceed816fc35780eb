"""Encodings of quantized weights, and recipes: which tensor gets which."""

from puna.graph.quantization.encoding import BlockParameters, QuantizationEncoding
from puna.graph.quantization.recipes import (
    RECIPES,
    TARGETS,
    QuantizationOptions,
    Recipe,
    TensorChoice,
    TensorOutline,
    choose_formats,
    fallback_sentence,
    has_small_values,
    recipe_of,
    target_format,
)

__all__ = [
    "RECIPES",
    "TARGETS",
    "BlockParameters",
    "QuantizationEncoding",
    "QuantizationOptions",
    "Recipe",
    "TensorChoice",
    "TensorOutline",
    "choose_formats",
    "fallback_sentence",
    "has_small_values",
    "recipe_of",
    "target_format",
]
