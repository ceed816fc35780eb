"""What a configuration's `quantization_config` section says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puna.errors import UnsupportedModelError
from puna.nn.quant_config import QuantizationConfig
from puna.pipelines.lib import SupportedEncoding
from puna.pipelines.lib.config_values import config_source, read_count, read_flag, read_value

__all__ = ["read_gptq_settings"]


def read_gptq_settings(encoding: SupportedEncoding, config: Any) -> QuantizationConfig | None:
    """GPTQ's settings where the encoding is GPTQ; any other quantization that a configuration names is refused.

    Raises:
        ValueError: weights in float16 are needed for GPTQ, or its settings are not supported.
        UnsupportedModelError: the configuration names a quantization that is not run.
    """
    section = read_value(config, "quantization_config")
    if section is not None and not isinstance(section, Mapping):
        section = section.to_dict()
    if encoding is SupportedEncoding.gptq:
        if section is None:
            raise UnsupportedModelError("quantization_config", None, file=config_source(config), supported="gptq")
        stored = str(read_value(config, "dtype") or read_value(config, "torch_dtype")).removeprefix("torch.")
        if stored != "float16":
            raise UnsupportedModelError("torch_dtype", stored, file=config_source(config), supported="float16")
        return QuantizationConfig(
            quant_method=str(section.get("quant_method")),
            bits=read_count(section, "bits"),
            group_size=int(section.get("group_size", -1)),
            desc_act=read_flag(section, "desc_act", False),
            sym=read_flag(section, "sym", False),
        )
    if section:
        method = section.get("quant_method")
        raise UnsupportedModelError("quantization_config.quant_method", method, file=config_source(config))
    return None
