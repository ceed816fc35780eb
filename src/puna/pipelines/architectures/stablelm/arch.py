"""The registry's entry for StableLM 2."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.llama3.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.architectures.stablelm.model import StableLmModel
from puna.pipelines.architectures.stablelm.model_config import StableLmConfig
from puna.pipelines.lib import SupportedArchitecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="StableLmForCausalLM",
        example_repo_ids=("stabilityai/stablelm-2-1_6b-chat", "stabilityai/stablelm-3b-4e1t"),
        pipeline_model=StableLmModel,
        config=StableLmConfig,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=StableLmConfig.default_rope_type,
        gguf_architectures=("stablelm",),
    ),
)
