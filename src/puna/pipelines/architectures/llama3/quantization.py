"""What a configuration's `quantization_config` says, as the documented records have it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from puna.errors import UnsupportedModelError
from puna.graph.weights import WeightData
from puna.graph.weights.quantized import QuantizedWeight
from puna.nn.quant_config import QuantConfig, QuantizationConfig
from puna.pipelines.lib import SupportedEncoding
from puna.pipelines.lib.config_values import config_source, read_value
from puna.pipelines.lib.quantization import read_quantization

__all__ = ["read_gptq_settings", "read_quant_config"]

_FLOATS: Final = {name: SupportedEncoding(name).dtype for name in ("float32", "float16", "bfloat16")}
_LAYER_MATRIX: Final = re.compile(r"layers\.(\d+)\.(self_attn|mlp)\.\w+\.weight")


def read_gptq_settings(encoding: SupportedEncoding, config: Any) -> QuantizationConfig | None:
    """GPTQ's settings where the encoding is GPTQ.

    Raises:
        UnsupportedModelError: the encoding is GPTQ and the configuration names no or another method; or a method or
            setting that is not run.
    """
    plan = read_quantization(config)
    if encoding is not SupportedEncoding.gptq:
        return None
    if plan is None or plan.settings is None:
        stated = plan.method if plan is not None else None
        raise UnsupportedModelError(
            "quantization_config.quant_method", stated, file=config_source(config), supported="gptq"
        )
    return plan.settings


def read_quant_config(config: Any, state_dict: Mapping[str, WeightData]) -> QuantConfig | None:
    """Scales of a checkpoint of FP8, FP4 or 8-bit integers; None for other ones.

    Args:
        config: The checkpoint's configuration.
        state_dict: Its weights by the graph's names.

    Raises:
        UnsupportedModelError: a method or setting that is not run.
    """
    plan = read_quantization(config)
    if plan is None or plan.scales is None:
        return None
    layers: dict[str, set[int]] = {"self_attn": set(), "mlp": set()}
    for name, weight in state_dict.items():
        place = _LAYER_MATRIX.search(name)
        if place is not None and isinstance(weight, QuantizedWeight):
            layers[place[2]].add(int(place[1]))
    stated = str(read_value(config, "dtype") or read_value(config, "torch_dtype")).removeprefix("torch.")
    return QuantConfig(
        input_scale=plan.scales.inputs,
        weight_scale=plan.scales.weights,
        mlp_quantized_layers=frozenset(layers["mlp"]),
        attn_quantized_layers=frozenset(layers["self_attn"]),
        format=plan.scales.format,
        embedding_output_dtype=_FLOATS.get(stated),
        bias_dtype=_FLOATS.get(stated),
    )
