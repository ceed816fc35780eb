"""Layer norm with weights, for families whose configuration states its epsilon."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from puna.nn.decoder_spec import DecoderSpec
from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.lib import MAXModelConfig, PipelineConfig
from puna.pipelines.lib.config_values import read_number

__all__ = ["LayerNormConfig"]


@dataclass(kw_only=True)
class LayerNormConfig(Llama3Config):
    """What families with such norms have in common.

    Attributes:
        layer_norm_eps: Epsilon of `layer_norm`. Not a parameter.
    """

    norm_has_bias: ClassVar[bool]
    """Whether norms have a bias too."""

    layer_norm_eps: float = field(init=False, default=1e-5)

    @classmethod
    def initialize_from_config(
        cls, pipeline_config: PipelineConfig, huggingface_config: Any, model_config: MAXModelConfig | None = None
    ) -> Self:
        """As `Llama3Config.initialize_from_config`, and the epsilon."""
        config = super().initialize_from_config(pipeline_config, huggingface_config, model_config)
        config.layer_norm_eps = read_number(huggingface_config, "layer_norm_eps")
        return config

    def decoder_spec(self) -> DecoderSpec:
        """The decoder that the fields describe. Raises as `Llama3Config.decoder_spec`."""
        spec = super().decoder_spec()
        return replace(spec, norm_eps=self.layer_norm_eps, norm_has_weight=True, norm_has_bias=self.norm_has_bias)
