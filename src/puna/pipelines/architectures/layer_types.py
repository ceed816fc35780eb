"""Windows that a configuration states layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Self

from puna.errors import InvalidRequestError, UnsupportedModelError
from puna.nn.decoder_spec import DecoderSpec
from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.lib import MAXModelConfig, PipelineConfig
from puna.pipelines.lib.config_values import config_source, read_count, read_value

__all__ = ["LayerTypesConfig"]

_LAYER_TYPES: Final = ("full_attention", "sliding_attention")


@dataclass(kw_only=True)
class LayerTypesConfig(Llama3Config):
    """What families have in common that give most of their layers a window.

    Attributes:
        sliding_window: Window of the layers that have one; None: none has. Not a parameter.
        sliding_window_layers: Which layers have it: those that `layer_types` calls `sliding_attention`; without that
            key all but every `window_period`-th. Not a parameter.
    """

    window_period: ClassVar[int]
    """One layer in so many has no window, the last of them."""

    sliding_window: int | None = field(init=False, default=None)
    sliding_window_layers: frozenset[int] = field(init=False, default=frozenset())

    @classmethod
    def initialize_from_config(
        cls, pipeline_config: PipelineConfig, huggingface_config: Any, model_config: MAXModelConfig | None = None
    ) -> Self:
        """As `Llama3Config.initialize_from_config`, and the windows."""
        config = super().initialize_from_config(pipeline_config, huggingface_config, model_config)
        config.sliding_window = read_count(huggingface_config, "sliding_window", None)
        if config.sliding_window is not None:
            config.sliding_window_layers = cls.windowed_layers(huggingface_config, config.num_hidden_layers)
        return config

    @classmethod
    def windowed_layers(cls, huggingface_config: Any, num_layers: int) -> frozenset[int]:
        """The layers with a window.

        Raises:
            UnsupportedModelError: `layer_types` has another length, or an entry that is not known.
        """
        layer_types = read_value(huggingface_config, "layer_types")
        if layer_types is None:
            period = read_count(huggingface_config, "sliding_window_pattern", cls.window_period)
            return frozenset(layer for layer in range(num_layers) if (layer + 1) % period)
        is_list = isinstance(layer_types, Sequence) and len(layer_types) == num_layers
        if not is_list or any(kind not in _LAYER_TYPES for kind in layer_types):
            supported = f"{num_layers} entries of {', '.join(_LAYER_TYPES)}"
            file = config_source(huggingface_config)
            raise UnsupportedModelError("layer_types", layer_types, file=file, supported=supported)
        return frozenset(layer for layer, kind in enumerate(layer_types) if kind == "sliding_attention")

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
