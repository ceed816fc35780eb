"""The registry's entry for Helium."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.helium.model import HeliumModel
from puna.pipelines.architectures.helium.model_config import HeliumConfig
from puna.pipelines.architectures.llama3.weight_adapters import safetensors_state_dict
from puna.pipelines.lib import SupportedArchitecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="HeliumForCausalLM",
        example_repo_ids=("kyutai/helium-1-preview-2b", "kyutai/helium-1-2b"),
        pipeline_model=HeliumModel,
        config=HeliumConfig,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict},
        rope_type=HeliumConfig.default_rope_type,
    ),
)
