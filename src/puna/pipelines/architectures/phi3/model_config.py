"""`Phi3Config`: Mistral's window, on GGUF files whose rotated pairs are half a head apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from puna.pipelines.architectures.mistral.model_config import MistralConfig
from puna.pipelines.lib import RopeType

__all__ = ["Phi3Config"]


@dataclass(kw_only=True)
class Phi3Config(MistralConfig):
    """The numbers of a Phi-3 model; the attributes are those of `MistralConfig`."""

    default_rope_type: ClassVar[RopeType] = "longrope"
