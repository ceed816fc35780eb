"""`ExaoneConfig`: Llama's, with GGUF files in halves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.lib import RopeType

__all__ = ["ExaoneConfig"]


@dataclass(kw_only=True)
class ExaoneConfig(Llama3Config):
    """The numbers of an EXAONE 3 model; the attributes are those of `Llama3Config`."""

    default_rope_type: ClassVar[RopeType] = "neox"
