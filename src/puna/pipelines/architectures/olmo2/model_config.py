"""`Olmo2Config`, `Olmo3Config`: norms behind the branches; windows on three of four layers in OLMo 3."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from puna.errors import InvalidRequestError
from puna.nn.rotary_embedding import RotaryEmbedding
from puna.nn.transformer import DecoderSpec, NormPlace
from puna.pipelines.architectures.layer_types import windowed_layers
from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.lib import MAXModelConfig, PipelineConfig, RopeType
from puna.pipelines.lib.config_values import read_count

__all__ = ["Olmo2Config", "Olmo3Config"]


@dataclass(kw_only=True)
class Olmo2Config(Llama3Config):
    """The numbers of an OLMo 2 model; the attributes are those of `Llama3Config`."""

    default_rope_type: ClassVar[RopeType] = "neox"

    def decoder_spec(self) -> DecoderSpec:
        """The decoder that the fields describe. Raises as `Llama3Config.decoder_spec`."""
        places = frozenset({NormPlace.AFTER_ATTENTION, NormPlace.AFTER_MLP})
        return replace(super().decoder_spec(), norm_places=places, qk_norm="row")


@dataclass(kw_only=True)
class Olmo3Config(Olmo2Config):
    """The numbers of an OLMo 3 model.

    Attributes:
        sliding_window: Window of the layers that have one. Not a parameter.
        sliding_window_layers: Which layers have it: those of `layer_types`, else all but every fourth. Not a parameter.
    """

    sliding_window: int | None = field(init=False, default=None)
    sliding_window_layers: frozenset[int] = field(init=False, default=frozenset())

    @classmethod
    def initialize_from_config(
        cls, pipeline_config: PipelineConfig, huggingface_config: Any, model_config: MAXModelConfig | None = None
    ) -> Self:
        """As `Llama3Config.initialize_from_config`, and the windows."""
        config = super().initialize_from_config(pipeline_config, huggingface_config, model_config)
        config.sliding_window_layers = windowed_layers(huggingface_config, config.num_hidden_layers, period=4)
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
        """The decoder that the fields describe: the context is stretched for the layers without a window only.

        Raises as `Llama3Config.decoder_spec`.
        """
        spec = super().decoder_spec()
        plain = RotaryEmbedding(spec.rope.head_dim, spec.rope.rot_dim, spec.rope.theta)
        return replace(
            spec,
            sliding_window=self.sliding_window,
            sliding_window_layers=self.sliding_window_layers,
            window_rope=None if spec.rope.scaling is None else plain,
        )
