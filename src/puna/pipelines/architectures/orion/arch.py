"""The registry's entry for Orion."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.llama3.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.architectures.orion.model import OrionModel
from puna.pipelines.architectures.orion.model_config import OrionConfig
from puna.pipelines.lib import SupportedArchitecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="OrionForCausalLM",
        example_repo_ids=("OrionStarAI/Orion-14B-Chat",),
        pipeline_model=OrionModel,
        config=OrionConfig,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=OrionConfig.default_rope_type,
        gguf_architectures=("orion",),
    ),
)
