"""The registry's entries for GLM-4."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.glm4.model import Glm4Model, GlmModel
from puna.pipelines.architectures.glm4.model_config import Glm4Config, GlmConfig
from puna.pipelines.architectures.glm4.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.lib import SupportedArchitecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="GlmForCausalLM",
        example_repo_ids=("zai-org/glm-4-9b-chat-hf", "zai-org/glm-edge-1.5b-chat"),
        pipeline_model=GlmModel,
        config=GlmConfig,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=GlmConfig.default_rope_type,
        gguf_architectures=("chatglm",),
    ),
    SupportedArchitecture(
        name="Glm4ForCausalLM",
        example_repo_ids=("zai-org/GLM-4-9B-0414", "zai-org/GLM-Z1-9B-0414"),
        pipeline_model=Glm4Model,
        config=Glm4Config,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=Glm4Config.default_rope_type,
        gguf_architectures=("glm4",),
    ),
)
