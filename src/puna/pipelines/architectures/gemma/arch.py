"""The registry's entries for Gemma."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.gemma.model import Gemma2Model, Gemma3Model, GemmaModel
from puna.pipelines.architectures.gemma.model_config import Gemma2Config, Gemma3Config, GemmaConfig
from puna.pipelines.architectures.gemma.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.lib import SupportedArchitecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="GemmaForCausalLM",
        example_repo_ids=("google/gemma-2b-it", "google/gemma-7b-it"),
        pipeline_model=GemmaModel,
        config=GemmaConfig,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=GemmaConfig.default_rope_type,
        gguf_architectures=("gemma",),
    ),
    SupportedArchitecture(
        name="Gemma2ForCausalLM",
        example_repo_ids=("google/gemma-2-2b-it", "google/gemma-2-9b-it"),
        pipeline_model=Gemma2Model,
        config=Gemma2Config,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=Gemma2Config.default_rope_type,
        gguf_architectures=("gemma2",),
    ),
    SupportedArchitecture(
        name="Gemma3ForCausalLM",
        example_repo_ids=("google/gemma-3-270m-it", "google/gemma-3-1b-it"),
        pipeline_model=Gemma3Model,
        config=Gemma3Config,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=Gemma3Config.default_rope_type,
        gguf_architectures=("gemma3",),
    ),
)
