"""`BaichuanConfig`: Llama's; the 13B models are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from puna.errors import UnsupportedModelError
from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.lib import MAXModelConfig
from puna.pipelines.lib.config_values import config_source, read_count

__all__ = ["BaichuanConfig"]

_ALIBI_HIDDEN_SIZE: Final = 5120


@dataclass(kw_only=True)
class BaichuanConfig(Llama3Config):
    """The numbers of a Baichuan model of 7B; the attributes are those of `Llama3Config`."""

    @classmethod
    def check_supported(cls, huggingface_config: Any, model_config: MAXModelConfig) -> None:
        """As `Llama3Config.check_supported`; models of 13B tell positions apart by ALiBi, and nothing says so but this
        size.
        """
        super().check_supported(huggingface_config, model_config)
        if read_count(huggingface_config, "hidden_size") == _ALIBI_HIDDEN_SIZE:
            raise UnsupportedModelError(
                "hidden_size",
                _ALIBI_HIDDEN_SIZE,
                file=config_source(huggingface_config),
                supported="4096 (models of 13B use ALiBi)",
            )
