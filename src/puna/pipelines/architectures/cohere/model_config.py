"""`CohereConfig`, `Cohere2Config`: parallel branches, neighbours rotated, logits scaled; windows in the second."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from puna.errors import UnsupportedModelError
from puna.nn.decoder_spec import DecoderSpec, NormPlace
from puna.pipelines.architectures.layer_norm import LayerNormConfig
from puna.pipelines.architectures.layer_types import LayerTypesConfig
from puna.pipelines.lib import MAXModelConfig, PipelineConfig
from puna.pipelines.lib.config_values import config_source, read_number, read_value

__all__ = ["Cohere2Config", "CohereConfig"]


@dataclass(kw_only=True)
class CohereConfig(LayerNormConfig):
    """The numbers of a Command R model; the attributes are those of `LayerNormConfig`."""

    norm_has_bias: ClassVar[bool] = False

    @classmethod
    def check_supported(cls, huggingface_config: Any, model_config: MAXModelConfig) -> None:
        """As `Llama3Config.check_supported`, and norms of queries and keys, which only Command R+ has."""
        super().check_supported(huggingface_config, model_config)
        if read_value(huggingface_config, "use_qk_norm"):
            file = config_source(huggingface_config)
            raise UnsupportedModelError("use_qk_norm", True, file=file, supported="false")

    @classmethod
    def initial_values(
        cls, pipeline_config: PipelineConfig, huggingface_config: Any, model_config: MAXModelConfig
    ) -> dict[str, Any]:
        """As `Llama3Config.initial_values`; logits are multiplied with `logit_scale`."""
        values = super().initial_values(pipeline_config, huggingface_config, model_config)
        return values | {"logits_scaling": 1.0 / read_number(huggingface_config, "logit_scale")}

    @classmethod
    def is_interleaved(cls, model_config: MAXModelConfig) -> bool:
        """True: both kinds of file have rotated pairs next to each other."""
        return True

    def decoder_spec(self) -> DecoderSpec:
        """The decoder that the fields describe. Raises as `Llama3Config.decoder_spec`."""
        places = frozenset({NormPlace.BEFORE_ATTENTION})
        return replace(super().decoder_spec(), norm_places=places, parallel_branches=True)


@dataclass(kw_only=True)
class Cohere2Config(LayerTypesConfig, CohereConfig):
    """The numbers of a Command R7B model; the attributes are those of `LayerTypesConfig`.

    Layers without a window do not rotate.
    """

    window_period: ClassVar[int] = 4

    def decoder_spec(self) -> DecoderSpec:
        """The decoder that the fields describe. Raises as `Llama3Config.decoder_spec`."""
        spec = super().decoder_spec()
        return replace(spec, unrotated_layers=frozenset(range(spec.num_layers)) - self.sliding_window_layers)
