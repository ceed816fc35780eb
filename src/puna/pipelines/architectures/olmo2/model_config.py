"""`Olmo2Config`, `Olmo3Config`: norms behind the branches; windows on three of four layers in OLMo 3."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from puna.nn.decoder_spec import DecoderSpec, NormPlace
from puna.nn.rotary_embedding import RotaryEmbedding
from puna.pipelines.architectures.layer_types import LayerTypesConfig
from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.lib import RopeType

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
class Olmo3Config(LayerTypesConfig, Olmo2Config):
    """The numbers of an OLMo 3 model; the attributes are those of `LayerTypesConfig`."""

    window_period: ClassVar[int] = 4

    def decoder_spec(self) -> DecoderSpec:
        """The decoder that the fields describe: the context is stretched for the layers without a window only.

        Raises as `Llama3Config.decoder_spec`.
        """
        spec = super().decoder_spec()
        if spec.rope.scaling is None:
            return spec
        return replace(spec, window_rope=RotaryEmbedding(spec.rope.head_dim, spec.rope.rot_dim, spec.rope.theta))
