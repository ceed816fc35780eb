"""The registry's entry for SmolLM3."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.llama3.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.architectures.smollm3.model import SmolLM3Model
from puna.pipelines.architectures.smollm3.model_config import SmolLM3Config
from puna.pipelines.lib import SupportedArchitecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="SmolLM3ForCausalLM",
        example_repo_ids=("HuggingFaceTB/SmolLM3-3B",),
        pipeline_model=SmolLM3Model,
        config=SmolLM3Config,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=SmolLM3Config.default_rope_type,
        gguf_architectures=("smollm3",),
    ),
)
