"""`Qwen2Config`: what Qwen2 has beyond Llama, windows on some of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from puna.errors import UnsupportedModelError
from puna.pipelines.architectures.layer_types import LayerTypesConfig
from puna.pipelines.lib import MAXModelConfig, PipelineConfig, RopeType
from puna.pipelines.lib.config_values import config_source, read_flag, read_value

__all__ = ["Qwen2Config"]

_LAYER_TYPES: Final = ("full_attention", "sliding_attention")


@dataclass(kw_only=True)
class Qwen2Config(LayerTypesConfig):
    """The numbers of a Qwen2 model; the attributes are those of `LayerTypesConfig`."""

    default_rope_type: ClassVar[RopeType] = "neox"

    @classmethod
    def initialize_from_config(
        cls, pipeline_config: PipelineConfig, huggingface_config: Any, model_config: MAXModelConfig | None = None
    ) -> Self:
        """As `Llama3Config.initialize_from_config`, and the windows."""
        config = super().initialize_from_config(pipeline_config, huggingface_config, model_config)
        config.sliding_window_layers = cls.windowed_layers(huggingface_config, config.num_hidden_layers)
        if not config.sliding_window_layers:
            config.sliding_window = None
        return config

    @classmethod
    def windowed_layers(cls, huggingface_config: Any, num_layers: int) -> frozenset[int]:
        """The layers of `layer_types` that slide, else those from `max_window_layers` on where windows are used at all.

        Raises:
            UnsupportedModelError: `layer_types` has another length, or an entry that is not known.
        """
        return _windowed_layers(huggingface_config, num_layers)


def _windowed_layers(config: Any, num_layers: int) -> frozenset[int]:
    is_used = read_flag(config, "use_sliding_window", False) and read_value(config, "sliding_window") is not None
    layer_types = read_value(config, "layer_types")
    if layer_types is not None:
        possible = _LAYER_TYPES if is_used else _LAYER_TYPES[:1]
        is_list = isinstance(layer_types, Sequence) and len(layer_types) == num_layers
        if not is_list or any(kind not in possible for kind in layer_types):
            supported = f"{num_layers} entries of {', '.join(possible)}"
            raise UnsupportedModelError("layer_types", layer_types, file=config_source(config), supported=supported)
        return frozenset(layer for layer, kind in enumerate(layer_types) if kind == "sliding_attention")
    if not is_used:
        return frozenset()
    first = read_value(config, "max_window_layers")
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise UnsupportedModelError(
            "max_window_layers", first, file=config_source(config), supported="whole numbers from 0"
        )
    return frozenset(range(first, num_layers))
