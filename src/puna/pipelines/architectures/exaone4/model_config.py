"""`Exaone4Config`: norms behind the branches; where there are windows, the layers without one do not rotate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from puna.nn.decoder_spec import DecoderSpec, NormPlace
from puna.pipelines.architectures.layer_types import LayerTypesConfig
from puna.pipelines.lib import RopeType

__all__ = ["Exaone4Config"]


@dataclass(kw_only=True)
class Exaone4Config(LayerTypesConfig):
    """The numbers of an EXAONE 4 model; the attributes are those of `LayerTypesConfig`."""

    default_rope_type: ClassVar[RopeType] = "neox"
    window_period: ClassVar[int] = 4

    def decoder_spec(self) -> DecoderSpec:
        """The decoder that the fields describe. Raises as `Llama3Config.decoder_spec`."""
        spec = super().decoder_spec()
        unrotated = frozenset(range(spec.num_layers)) - self.sliding_window_layers
        return replace(
            spec,
            norm_places=frozenset({NormPlace.AFTER_ATTENTION, NormPlace.AFTER_MLP}),
            qk_norm="head",
            unrotated_layers=unrotated if self.sliding_window is not None else frozenset(),
        )
