"""The registry's entries for Command R and Command R7B."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.cohere.model import Cohere2Model, CohereModel
from puna.pipelines.architectures.cohere.model_config import Cohere2Config, CohereConfig
from puna.pipelines.architectures.llama3.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.lib import SupportedArchitecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="CohereForCausalLM",
        example_repo_ids=("CohereLabs/c4ai-command-r-v01", "CohereLabs/aya-expanse-8b"),
        pipeline_model=CohereModel,
        config=CohereConfig,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=CohereConfig.default_rope_type,
        gguf_architectures=("command-r",),
    ),
    SupportedArchitecture(
        name="Cohere2ForCausalLM",
        example_repo_ids=("CohereLabs/c4ai-command-r7b-12-2024",),
        pipeline_model=Cohere2Model,
        config=Cohere2Config,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=Cohere2Config.default_rope_type,
        gguf_architectures=("cohere2",),
    ),
)
