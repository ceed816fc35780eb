"""`Qwen3Config`: Qwen2's windows, and norms of queries and keys."""

from __future__ import annotations

from dataclasses import dataclass, replace

from puna.nn.decoder_spec import DecoderSpec
from puna.pipelines.architectures.qwen2.model_config import Qwen2Config

__all__ = ["Qwen3Config"]


@dataclass(kw_only=True)
class Qwen3Config(Qwen2Config):
    """The numbers of a Qwen3 model; the attributes are those of `Qwen2Config`."""

    def decoder_spec(self) -> DecoderSpec:
        """The decoder that the fields describe. Raises as `Llama3Config.decoder_spec`."""
        return replace(super().decoder_spec(), qk_norm="head")
