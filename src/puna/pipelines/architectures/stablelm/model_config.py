"""`StableLmConfig`: layer norm with weight and bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

from puna.errors import UnsupportedModelError
from puna.pipelines.architectures.layer_norm import LayerNormConfig
from puna.pipelines.lib import MAXModelConfig, RopeType
from puna.pipelines.lib.config_values import config_source, read_value

__all__ = ["StableLmConfig"]

_REFUSED: Final = ("qk_layernorm", "use_parallel_residual")  # of the 12B model


@dataclass(kw_only=True)
class StableLmConfig(LayerNormConfig):
    """The numbers of a StableLM model; the attributes are those of `LayerNormConfig`."""

    default_rope_type: ClassVar[RopeType] = "neox"
    norm_has_bias: ClassVar[bool] = True

    @classmethod
    def check_supported(cls, huggingface_config: Any, model_config: MAXModelConfig) -> None:
        """As `Llama3Config.check_supported`, and what only the largest StableLM has."""
        super().check_supported(huggingface_config, model_config)
        for key in _REFUSED:
            if read_value(huggingface_config, key):
                raise UnsupportedModelError(key, True, file=config_source(huggingface_config), supported="false")
