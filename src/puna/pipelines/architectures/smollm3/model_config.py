"""`SmolLM3Config`: layers without rotation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Self

from puna.errors import UnsupportedModelError
from puna.nn.decoder_spec import DecoderSpec
from puna.pipelines.architectures.qwen2.model_config import Qwen2Config
from puna.pipelines.lib import MAXModelConfig, PipelineConfig, RopeType
from puna.pipelines.lib.config_values import config_source, read_count, read_value

__all__ = ["SmolLM3Config"]

_INTERVAL: Final = 4


@dataclass(kw_only=True)
class SmolLM3Config(Qwen2Config):
    """The numbers of a SmolLM3 model. Windows are stated as Qwen2 states them.

    Attributes:
        unrotated_layers: The layers that do not rotate queries and keys: zeros of `no_rope_layers`, else every
            `no_rope_layer_interval`-th layer, 4 unless stated. Not a parameter.
    """

    default_rope_type: ClassVar[RopeType] = "normal"

    unrotated_layers: frozenset[int] = field(init=False, default=frozenset())

    @classmethod
    def initialize_from_config(
        cls, pipeline_config: PipelineConfig, huggingface_config: Any, model_config: MAXModelConfig | None = None
    ) -> Self:
        """As `Llama3Config.initialize_from_config`, the windows, and the layers without rotation."""
        config = super().initialize_from_config(pipeline_config, huggingface_config, model_config)
        config.unrotated_layers = _unrotated_layers(huggingface_config, config.num_hidden_layers)
        return config

    def decoder_spec(self) -> DecoderSpec:
        """The decoder that the fields describe. Raises as `Llama3Config.decoder_spec`."""
        return replace(super().decoder_spec(), unrotated_layers=self.unrotated_layers)


def _unrotated_layers(config: Any, num_layers: int) -> frozenset[int]:
    rotates = read_value(config, "no_rope_layers")
    if rotates is None:
        interval = read_count(config, "no_rope_layer_interval", _INTERVAL)
        return frozenset(range(interval - 1, num_layers, interval))
    is_list = isinstance(rotates, Sequence) and len(rotates) == num_layers
    if not is_list or any(flag not in (0, 1) for flag in rotates):
        raise UnsupportedModelError(
            "no_rope_layers", rotates, file=config_source(config), supported=f"{num_layers} entries of 0, 1"
        )
    return frozenset(layer for layer, flag in enumerate(rotates) if not flag)
