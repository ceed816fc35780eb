"""`OrionConfig`: layer norm with weight and bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from puna.pipelines.architectures.layer_norm import LayerNormConfig
from puna.pipelines.lib import RopeType

__all__ = ["OrionConfig"]


@dataclass(kw_only=True)
class OrionConfig(LayerNormConfig):
    """The numbers of an Orion model; the attributes are those of `LayerNormConfig`.

    Its `config.json` calls the epsilon `rms_norm_eps`.
    """

    default_rope_type: ClassVar[RopeType] = "neox"
    norm_has_bias: ClassVar[bool] = True
