"""`Ernie4_5Config`: neighbours are rotated."""

from __future__ import annotations

from dataclasses import dataclass

from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.lib import MAXModelConfig

__all__ = ["Ernie4_5Config"]


@dataclass(kw_only=True)
class Ernie4_5Config(Llama3Config):
    """The numbers of an Ernie 4.5 model; the attributes are those of `Llama3Config`."""

    @classmethod
    def is_interleaved(cls, model_config: MAXModelConfig) -> bool:
        """True: both kinds of file have rotated pairs next to each other."""
        return True
