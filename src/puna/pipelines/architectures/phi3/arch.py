"""The registry's entry for Phi-3."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.phi3.model import Phi3Model
from puna.pipelines.architectures.phi3.model_config import Phi3Config
from puna.pipelines.architectures.phi3.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.lib import SupportedArchitecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="Phi3ForCausalLM",
        example_repo_ids=(
            "microsoft/Phi-3-mini-4k-instruct",
            "microsoft/Phi-3.5-mini-instruct",
            "microsoft/Phi-4-mini-instruct",
            "microsoft/phi-4",
        ),
        pipeline_model=Phi3Model,
        config=Phi3Config,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=Phi3Config.default_rope_type,
        multi_gpu_supported=True,
        gguf_architectures=("phi3",),
    ),
)
