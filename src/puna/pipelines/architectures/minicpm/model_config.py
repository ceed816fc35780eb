"""`MiniCPMConfig`: scaled embeddings, branches and logits (Hu et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from puna.errors import UnsupportedModelError
from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.lib import MAXModelConfig, PipelineConfig
from puna.pipelines.lib.config_values import config_source, read_count, read_number, read_value

__all__ = ["MiniCPMConfig"]


@dataclass(kw_only=True)
class MiniCPMConfig(Llama3Config):
    """The numbers of a MiniCPM model; the attributes are those of `Llama3Config`."""

    @classmethod
    def check_supported(cls, huggingface_config: Any, model_config: MAXModelConfig) -> None:
        """As `Llama3Config.check_supported`, and sparse attention, which some of MiniCPM 4 have, and experts."""
        super().check_supported(huggingface_config, model_config)
        for key in ("sparse_config", "num_experts"):
            value = read_value(huggingface_config, key)
            if value:
                raise UnsupportedModelError(key, value, file=config_source(huggingface_config), supported="null")

    @classmethod
    def initial_values(
        cls, pipeline_config: PipelineConfig, huggingface_config: Any, model_config: MAXModelConfig
    ) -> dict[str, Any]:
        """As `Llama3Config.initial_values`.

        Embeddings are multiplied with `scale_emb`, branches with `scale_depth / sqrt(L)`, and logits divided by
        `hidden_size / dim_model_base`. GGUF files state the three results.
        """
        values = super().initial_values(pipeline_config, huggingface_config, model_config)
        if model_config.is_gguf:
            return values
        depth = read_number(huggingface_config, "scale_depth")
        base = read_count(huggingface_config, "dim_model_base")
        return values | {
            "embedding_multiplier": read_number(huggingface_config, "scale_emb"),
            "residual_multiplier": depth / math.sqrt(values["num_hidden_layers"]),
            "logits_scaling": values["hidden_size"] / base,
        }
