"""`MistralConfig`, `MinistralConfig`: what they have beyond Llama, sliding windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from puna.errors import UnsupportedModelError
from puna.nn.decoder_spec import DecoderSpec
from puna.pipelines.architectures.layer_types import LayerTypesConfig
from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.lib import MAXModelConfig, PipelineConfig
from puna.pipelines.lib.config_values import config_source, read_count, read_value

__all__ = ["MinistralConfig", "MistralConfig"]


@dataclass(kw_only=True)
class MistralConfig(Llama3Config):
    """The numbers of a Mistral model.

    Attributes:
        sliding_window: A query at position p sees p and the `sliding_window - 1` positions before it; None: all.
            From the options, else from the configuration. Not a parameter: `initialize_from_config` sets it.
    """

    sliding_window: int | None = field(init=False, default=None)

    @classmethod
    def initialize_from_config(
        cls, pipeline_config: PipelineConfig, huggingface_config: Any, model_config: MAXModelConfig | None = None
    ) -> Self:
        """As `Llama3Config.initialize_from_config`, and the window."""
        model_config = model_config or pipeline_config.model
        config = super().initialize_from_config(pipeline_config, huggingface_config, model_config)
        config.sliding_window = model_config.sliding_window or read_count(huggingface_config, "sliding_window", None)
        return config

    @classmethod
    def check_sliding_window(cls, huggingface_config: Any, model_config: MAXModelConfig) -> None:
        """Refuse kinds of attention per layer, which this family does not have.

        Raises:
            UnsupportedModelError: `layer_types` says something else than `sliding_window`.
        """
        window, layers = (read_value(huggingface_config, key) for key in ("sliding_window", "layer_types"))
        expected = "full_attention" if window is None else "sliding_attention"
        is_uniform = isinstance(layers, Sequence) and all(kind == expected for kind in layers)
        if layers is not None and not is_uniform:
            raise UnsupportedModelError(
                "layer_types", layers, file=config_source(huggingface_config), supported=f"{expected} throughout"
            )

    def decoder_spec(self) -> DecoderSpec:
        """The decoder that the fields describe. Raises as `Llama3Config.decoder_spec`."""
        return replace(super().decoder_spec(), sliding_window=self.sliding_window)


@dataclass(kw_only=True)
class MinistralConfig(LayerTypesConfig):
    """The numbers of a Ministral model: layers with a window, which `layer_types` names; without that key all are."""

    @classmethod
    def windowed_layers(cls, huggingface_config: Any, num_layers: int) -> frozenset[int]:
        """As `LayerTypesConfig.windowed_layers`, without a period."""
        if read_value(huggingface_config, "layer_types") is None:
            return frozenset(range(num_layers))
        return super().windowed_layers(huggingface_config, num_layers)
