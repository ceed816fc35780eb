"""The registry's entry for OLMo 2 and 3."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.olmo2.model import Olmo2Model, Olmo3Model
from puna.pipelines.architectures.olmo2.model_config import Olmo2Config, Olmo3Config
from puna.pipelines.architectures.olmo2.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.lib import SupportedArchitecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="Olmo2ForCausalLM",
        example_repo_ids=("allenai/OLMo-2-0425-1B-Instruct", "allenai/OLMo-2-1124-7B"),
        pipeline_model=Olmo2Model,
        config=Olmo2Config,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=Olmo2Config.default_rope_type,
        gguf_architectures=("olmo2",),
    ),
    SupportedArchitecture(
        name="Olmo3ForCausalLM",
        example_repo_ids=("allenai/Olmo-3-7B-Instruct",),
        pipeline_model=Olmo3Model,
        config=Olmo3Config,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=Olmo3Config.default_rope_type,
        written_gguf_architecture="olmo2",
    ),
)
