"""`GemmaConfig`, `Gemma2Config`, `Gemma3Config`: scaled embeddings, GELU; later norms on all sides, windows, caps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Self

from puna.errors import UnsupportedModelError
from puna.nn.decoder_spec import DecoderSpec, NormPlace
from puna.nn.rotary_embedding import RotaryEmbedding
from puna.pipelines.architectures.layer_types import LayerTypesConfig
from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.lib import MAXModelConfig, PipelineConfig, RopeType
from puna.pipelines.lib.config_values import config_source, read_count, read_number, read_value
from puna.pipelines.lib.rope_section import split_rope

__all__ = ["Gemma2Config", "Gemma3Config", "GemmaConfig"]

_GELU: Final = ("gelu_pytorch_tanh", "gelu")  # Gemma 1 says gelu and means its approximation


class _Changed:
    """A configuration with some keys changed: one of transformers' classes, which states rotations layer by layer."""

    def __init__(self, config: Any, changes: dict[str, Any]) -> None:
        self._config = config
        self._changes = changes

    def __getattr__(self, key: str) -> Any:
        changes = self.__dict__["_changes"]
        return changes[key] if key in changes else getattr(self.__dict__["_config"], key)


@dataclass(kw_only=True)
class GemmaConfig(Llama3Config):
    """The numbers of a Gemma model; the attributes are those of `Llama3Config`."""

    default_rope_type: ClassVar[RopeType] = "neox"
    activations: ClassVar[tuple[str, ...]] = _GELU

    @classmethod
    def check_supported(cls, huggingface_config: Any, model_config: MAXModelConfig) -> None:
        """As `Llama3Config.check_supported`, and what only other models of this shape have."""
        super().check_supported(huggingface_config, model_config)
        value = read_value(huggingface_config, "use_bidirectional_attention")
        if value:
            file = config_source(huggingface_config)
            raise UnsupportedModelError("use_bidirectional_attention", value, file=file, supported="null")

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
class Gemma2Config(LayerTypesConfig, GemmaConfig):
    """The numbers of a Gemma 2 model.

    Attributes:
        attention_softcap: Scores s become `cap * tanh(s / cap)`; None: they stay. Not a parameter.
        logits_softcap: The same for logits. Not a parameter.
    """

    window_period: ClassVar[int] = 2
    layers_of_27b: ClassVar[int] = 46
    """Layers of the one size whose factor on q·k is not `1 / sqrt(D)`, which GGUF files do not state."""

    attention_softcap: float | None = field(init=False, default=None)
    logits_softcap: float | None = field(init=False, default=None)

    @classmethod
    def initial_values(
        cls, pipeline_config: PipelineConfig, huggingface_config: Any, model_config: MAXModelConfig
    ) -> dict[str, Any]:
        """As `GemmaConfig.initial_values`; the factor on q·k is `query_pre_attn_scalar ** -0.5`."""
        values = super().initial_values(pipeline_config, huggingface_config, model_config)
        scalar = read_number(huggingface_config, "query_pre_attn_scalar", None)
        if scalar is None and values["num_hidden_layers"] == cls.layers_of_27b:
            scalar = values["hidden_size"] / values["num_attention_heads"]
        return values if scalar is None else values | {"attention_multiplier": scalar**-0.5}

    @classmethod
    def initialize_from_config(
        cls, pipeline_config: PipelineConfig, huggingface_config: Any, model_config: MAXModelConfig | None = None
    ) -> Self:
        """As `Llama3Config.initialize_from_config`, the windows, and the caps."""
        config = super().initialize_from_config(pipeline_config, huggingface_config, model_config)
        config.attention_softcap = read_number(huggingface_config, "attn_logit_softcapping", None)
        config.logits_softcap = read_number(huggingface_config, "final_logit_softcapping", None)
        return config

    def decoder_spec(self) -> DecoderSpec:
        """The decoder that the fields describe. Raises as `Llama3Config.decoder_spec`."""
        return replace(
            super().decoder_spec(),
            norm_places=frozenset(NormPlace),
            attention_softcap=self.attention_softcap,
            logits_softcap=self.logits_softcap,
        )


@dataclass(kw_only=True)
class Gemma3Config(Gemma2Config):
    """The numbers of a Gemma 3 model.

    Attributes:
        local_rope_theta: Base of the rotary frequencies of layers with a window. Not a parameter.
    """

    window_period: ClassVar[int] = 6
    layers_of_27b: ClassVar[int] = 62

    local_rope_theta: float = field(init=False, default=10000.0)

    @classmethod
    def initialize_from_config(
        cls, pipeline_config: PipelineConfig, huggingface_config: Any, model_config: MAXModelConfig | None = None
    ) -> Self:
        """As `Gemma2Config.initialize_from_config`, and the rotation of layers with a window."""
        split = split_rope({"rope_parameters": read_value(huggingface_config, "rope_parameters")})
        huggingface_config = _Changed(huggingface_config, split) if split else huggingface_config
        config = super().initialize_from_config(pipeline_config, huggingface_config, model_config)
        config.local_rope_theta = read_number(huggingface_config, "rope_local_base_freq", 10000.0)
        return config

    @classmethod
    def windowed_layers(cls, huggingface_config: Any, num_layers: int) -> frozenset[int]:
        """As `LayerTypesConfig.windowed_layers`; some configurations call the period `_sliding_window_pattern`."""
        period = read_count(huggingface_config, "_sliding_window_pattern", None)
        if period is None or read_value(huggingface_config, "layer_types") is not None:
            return super().windowed_layers(huggingface_config, num_layers)
        return frozenset(layer for layer in range(num_layers) if (layer + 1) % period)

    def decoder_spec(self) -> DecoderSpec:
        """The decoder that the fields describe. Raises as `Llama3Config.decoder_spec`."""
        spec = super().decoder_spec()
        local = RotaryEmbedding(spec.rope.head_dim, spec.rope.rot_dim, self.local_rope_theta)
        return replace(spec, qk_norm="head", window_rope=local)
