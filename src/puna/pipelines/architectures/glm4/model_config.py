"""`GlmConfig`, `Glm4Config`: neighbours rotated; norms on both sides of the branches in the second."""

from __future__ import annotations

from dataclasses import dataclass, replace

from puna.nn.decoder_spec import DecoderSpec, NormPlace
from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.lib import MAXModelConfig

__all__ = ["Glm4Config", "GlmConfig"]


@dataclass(kw_only=True)
class GlmConfig(Llama3Config):
    """The numbers of a GLM-4 model; the attributes are those of `Llama3Config`."""

    @classmethod
    def is_interleaved(cls, model_config: MAXModelConfig) -> bool:
        """True: both kinds of file have rotated pairs next to each other."""
        return True


@dataclass(kw_only=True)
class Glm4Config(GlmConfig):
    """The numbers of a GLM-4-0414 model; the attributes are those of `Llama3Config`."""

    def decoder_spec(self) -> DecoderSpec:
        """The decoder that the fields describe. Raises as `Llama3Config.decoder_spec`."""
        return replace(super().decoder_spec(), norm_places=frozenset(NormPlace))
