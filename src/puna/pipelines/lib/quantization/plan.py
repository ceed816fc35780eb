"""`QuantizationPlan`: what a configuration says of its quantized layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from puna.graph.weights.quantized import LayerScheme
from puna.nn.quant_config import InputScaleSpec, QuantFormat, QuantizationConfig, WeightScaleSpec
from puna.pipelines.lib.quantization.module_names import ModuleNames

__all__ = ["FloatScales", "LayerGroup", "QuantizationPlan"]


@dataclass(frozen=True)
class FloatScales:
    """What `QuantConfig` says of scales."""

    inputs: InputScaleSpec
    weights: WeightScaleSpec
    format: QuantFormat


@dataclass(frozen=True)
class LayerGroup:
    """Layers that share a scheme.

    Attributes:
        scheme: Their scheme; None: they are not quantized.
        names: Their names; None: all layers.
    """

    scheme: LayerScheme | None
    names: ModuleNames | None = None


@dataclass(frozen=True)
class QuantizationPlan:
    """The quantized layers of a checkpoint.

    Attributes:
        method: `quant_method`.
        groups: Groups of layers; the first that a layer is in counts.
        ignored: Layers that are not quantized.
        settings: GPTQ's settings; None for other methods.
        scales: What `QuantConfig` says of the first group's scales; None for integers of less than 8 bits.
    """

    method: str
    groups: Sequence[LayerGroup]
    ignored: ModuleNames
    settings: QuantizationConfig | None = None
    scales: FloatScales | None = None

    def scheme_of(self, module: str) -> LayerScheme | None:
        """The scheme of a layer; None if the configuration says that it is not quantized."""
        if module in self.ignored:
            return None
        named = (group for group in self.groups if group.names is not None and module in group.names)
        others = (group for group in self.groups if group.names is None)
        group = next(named, None) or next(others, None)
        return group.scheme if group is not None else None
