"""`Qwen2Config`: what Qwen2 has beyond Llama, windows on some of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Self

from puna.errors import InvalidRequestError, UnsupportedModelError
from puna.nn.transformer import DecoderSpec
from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.lib import MAXModelConfig, PipelineConfig, RopeType
from puna.pipelines.lib.config_values import config_source, read_count, read_flag, read_value

__all__ = ["Qwen2Config"]

_LAYER_TYPES: Final = ("full_attention", "sliding_attention")


@dataclass(kw_only=True)
class Qwen2Config(Llama3Config):
    """The numbers of a Qwen2 model.

    Attributes:
        sliding_window: Window of the layers that have one; None: none has. Not a parameter.
        sliding_window_layers: Which layers have it. Not a parameter.
    """

    default_rope_type: ClassVar[RopeType] = "neox"

    sliding_window: int | None = field(init=False, default=None)
    sliding_window_layers: frozenset[int] = field(init=False, default=frozenset())

    @classmethod
    def initialize_from_config(
        cls, pipeline_config: PipelineConfig, huggingface_config: Any, model_config: MAXModelConfig | None = None
    ) -> Self:
        """As `Llama3Config.initialize_from_config`, and the windows."""
        model_config = model_config or pipeline_config.model
        config = super().initialize_from_config(pipeline_config, huggingface_config, model_config)
        config.sliding_window_layers = _windowed_layers(huggingface_config, config.num_hidden_layers)
        if config.sliding_window_layers:
            config.sliding_window = read_count(huggingface_config, "sliding_window")
        return config

    @classmethod
    def check_sliding_window(cls, huggingface_config: Any, model_config: MAXModelConfig) -> None:
        """Refuse the option for a window: which layers have one is the configuration's to say.

        Raises:
            InvalidRequestError: the option is set.
        """
        if model_config.sliding_window is not None:
            raise InvalidRequestError("is not an option of this architecture", param="sliding_window")

    def decoder_spec(self) -> DecoderSpec:
        """The decoder that the fields describe. Raises as `Llama3Config.decoder_spec`."""
        spec = super().decoder_spec()
        return replace(spec, sliding_window=self.sliding_window, sliding_window_layers=self.sliding_window_layers)


def _windowed_layers(config: Any, num_layers: int) -> frozenset[int]:
    """The layers of `layer_types` that slide, else those from `max_window_layers` on where windows are used at all."""
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
