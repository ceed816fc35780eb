"""The registry's entry for Qwen3."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.qwen3.model import Qwen3Model
from puna.pipelines.architectures.qwen3.model_config import Qwen3Config
from puna.pipelines.architectures.qwen3.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.lib import SupportedArchitecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="Qwen3ForCausalLM",
        example_repo_ids=("Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B", "Qwen/Qwen3-4B-Instruct-2507"),
        pipeline_model=Qwen3Model,
        config=Qwen3Config,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=Qwen3Config.default_rope_type,
        gguf_architectures=("qwen3",),
    ),
)
