"""`HeliumConfig`: neighbours are rotated."""

from __future__ import annotations

from dataclasses import dataclass

from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.lib import MAXModelConfig

__all__ = ["HeliumConfig"]


@dataclass(kw_only=True)
class HeliumConfig(Llama3Config):
    """The numbers of a Helium model; the attributes are those of `Llama3Config`."""

    @classmethod
    def is_interleaved(cls, model_config: MAXModelConfig) -> bool:
        """True: the checkpoints have rotated pairs next to each other."""
        return True
