"""`GemmaConfig`, `Gemma3Config`: scaled embeddings and GELU; in Gemma 3 norms on all sides, and windows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Self

from puna.errors import UnsupportedModelError
from puna.nn.rotary_embedding import RotaryEmbedding
from puna.nn.transformer import DecoderSpec, NormPlace
from puna.pipelines.architectures.layer_types import LayerTypesConfig
from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.lib import MAXModelConfig, PipelineConfig, RopeType
from puna.pipelines.lib.config_values import config_source, read_count, read_number, read_value

__all__ = ["Gemma3Config", "GemmaConfig"]

_GELU: Final = ("gelu_pytorch_tanh", "gelu")  # Gemma 1 says gelu and means its approximation
# GGUF files do not state the factor on q·k. It is 1 / sqrt(D), but for the one size of Gemma 3 with so many layers.
_LAYERS_OF_27B: Final = 62


@dataclass(kw_only=True)
class GemmaConfig(Llama3Config):
    """The numbers of a Gemma model; the attributes are those of `Llama3Config`."""

    default_rope_type: ClassVar[RopeType] = "neox"
    activations: ClassVar[tuple[str, ...]] = _GELU

    @classmethod
    def check_supported(cls, huggingface_config: Any, model_config: MAXModelConfig) -> None:
        """As `Llama3Config.check_supported`, and what only other models of this shape have."""
        super().check_supported(huggingface_config, model_config)
        for key in ("use_bidirectional_attention", "attn_logit_softcapping"):
            value = read_value(huggingface_config, key)
            if value:
                raise UnsupportedModelError(key, value, file=config_source(huggingface_config), supported="null")

    @classmethod
    def initial_values(
        cls, pipeline_config: PipelineConfig, huggingface_config: Any, model_config: MAXModelConfig
    ) -> dict[str, Any]:
        """As `Llama3Config.initial_values`; embeddings are multiplied with `sqrt(hidden_size)`."""
        values = super().initial_values(pipeline_config, huggingface_config, model_config)
        return values | {"embedding_multiplier": math.sqrt(values["hidden_size"])}

    def decoder_spec(self) -> DecoderSpec:
        """The decoder that the fields describe. Raises as `Llama3Config.decoder_spec`."""
        return replace(super().decoder_spec(), activation="gelu_tanh")


@dataclass(kw_only=True)
class Gemma3Config(LayerTypesConfig, GemmaConfig):
    """The numbers of a Gemma 3 model.

    Attributes:
        local_rope_theta: Base of the rotary frequencies of layers with a window. Not a parameter.
        logits_softcap: Logits x become `cap * tanh(x / cap)`; None: they stay. Not a parameter.
    """

    window_period: ClassVar[int] = 6

    local_rope_theta: float = field(init=False, default=10000.0)
    logits_softcap: float | None = field(init=False, default=None)

    @classmethod
    def initial_values(
        cls, pipeline_config: PipelineConfig, huggingface_config: Any, model_config: MAXModelConfig
    ) -> dict[str, Any]:
        """As `GemmaConfig.initial_values`; the factor on q·k is `query_pre_attn_scalar ** -0.5`."""
        values = super().initial_values(pipeline_config, huggingface_config, model_config)
        scalar = read_number(huggingface_config, "query_pre_attn_scalar", None)
        if scalar is None and values["num_hidden_layers"] == _LAYERS_OF_27B:
            scalar = values["hidden_size"] / values["num_attention_heads"]
        return values if scalar is None else values | {"attention_multiplier": scalar**-0.5}

    @classmethod
    def initialize_from_config(
        cls, pipeline_config: PipelineConfig, huggingface_config: Any, model_config: MAXModelConfig | None = None
    ) -> Self:
        """As `Llama3Config.initialize_from_config`, the windows and their rotation, and the cap of logits."""
        config = super().initialize_from_config(pipeline_config, huggingface_config, model_config)
        config.local_rope_theta = read_number(huggingface_config, "rope_local_base_freq", 10000.0)
        config.logits_softcap = read_number(huggingface_config, "final_logit_softcapping", None)
        return config

    @classmethod
    def windowed_layers(cls, huggingface_config: Any, num_layers: int) -> frozenset[int]:
        """As `LayerTypesConfig.windowed_layers`; older configurations call the period `sliding_window_pattern`."""
        period = read_count(huggingface_config, "_sliding_window_pattern", None)
        if period is None or read_value(huggingface_config, "layer_types") is not None:
            return super().windowed_layers(huggingface_config, num_layers)
        return frozenset(layer for layer in range(num_layers) if (layer + 1) % period)

    def decoder_spec(self) -> DecoderSpec:
        """The decoder that the fields describe. Raises as `Llama3Config.decoder_spec`."""
        spec = super().decoder_spec()
        return replace(
            spec,
            norm_places=frozenset(NormPlace),
            qk_norm="head",
            window_rope=RotaryEmbedding(spec.rope.head_dim, spec.rope.rot_dim, self.local_rope_theta),
            logits_softcap=self.logits_softcap,
        )
