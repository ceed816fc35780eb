"""The registry's entry for Qwen2."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.llama3.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.architectures.qwen2.model import Qwen2Model
from puna.pipelines.architectures.qwen2.model_config import Qwen2Config
from puna.pipelines.lib import SupportedArchitecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="Qwen2ForCausalLM",
        example_repo_ids=(
            "Qwen/Qwen2.5-0.5B-Instruct",
            "Qwen/Qwen2.5-7B-Instruct",
            "Qwen/QwQ-32B",
            "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        ),
        pipeline_model=Qwen2Model,
        config=Qwen2Config,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=Qwen2Config.default_rope_type,
        multi_gpu_supported=True,
        gguf_architectures=("qwen2",),
    ),
)
