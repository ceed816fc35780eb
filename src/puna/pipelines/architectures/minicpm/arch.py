"""The registry's entry for MiniCPM."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.llama3.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.architectures.minicpm.model import MiniCPMModel
from puna.pipelines.architectures.minicpm.model_config import MiniCPMConfig
from puna.pipelines.lib import SupportedArchitecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="MiniCPMForCausalLM",
        example_repo_ids=("openbmb/MiniCPM-2B-sft-bf16", "openbmb/MiniCPM-1B-sft-bf16", "openbmb/MiniCPM4-0.5B"),
        pipeline_model=MiniCPMModel,
        config=MiniCPMConfig,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=MiniCPMConfig.default_rope_type,
        gguf_architectures=("minicpm",),
    ),
)
