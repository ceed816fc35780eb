"""The registry's entries for InternLM."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.internlm.weight_adapters import internlm2_state_dict
from puna.pipelines.architectures.llama3 import Llama3Config, Llama3Model
from puna.pipelines.architectures.llama3.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.lib import SupportedArchitecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="InternLMForCausalLM",
        example_repo_ids=("internlm/internlm-7b", "internlm/internlm-chat-20b"),
        pipeline_model=Llama3Model,
        config=Llama3Config,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict},
        rope_type="normal",
        written_gguf_architecture="llama",
    ),
    SupportedArchitecture(
        name="InternLM2ForCausalLM",
        example_repo_ids=("internlm/internlm2-chat-7b", "internlm/internlm2_5-1_8b-chat"),
        pipeline_model=Llama3Model,
        config=Llama3Config,
        weight_adapters={WeightsFormat.safetensors: internlm2_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type="normal",
        gguf_architectures=("internlm2",),
    ),
    SupportedArchitecture(
        name="InternLM3ForCausalLM",
        example_repo_ids=("internlm/internlm3-8b-instruct",),
        pipeline_model=Llama3Model,
        config=Llama3Config,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict},
        rope_type="normal",
        written_gguf_architecture="llama",
    ),
)
