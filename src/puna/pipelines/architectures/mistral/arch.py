"""The registry's entries for Mistral and Ministral."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.llama3.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.architectures.mistral.model import MinistralModel, MistralModel
from puna.pipelines.architectures.mistral.model_config import MinistralConfig, MistralConfig
from puna.pipelines.lib import SupportedArchitecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="MistralForCausalLM",
        example_repo_ids=(
            "mistralai/Mistral-7B-v0.1",
            "mistralai/Mistral-7B-Instruct-v0.3",
            "mistralai/Mistral-Nemo-Instruct-2407",
        ),
        pipeline_model=MistralModel,
        config=MistralConfig,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=MistralConfig.default_rope_type,
        multi_gpu_supported=True,
        written_gguf_architecture="llama",
    ),
    SupportedArchitecture(
        name="MinistralForCausalLM",
        example_repo_ids=("mistralai/Ministral-8B-Instruct-2410",),
        pipeline_model=MinistralModel,
        config=MinistralConfig,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=MinistralConfig.default_rope_type,
        written_gguf_architecture="llama",
    ),
)
