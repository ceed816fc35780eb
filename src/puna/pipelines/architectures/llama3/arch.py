"""The registry's entry for Llama."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.llama3.model import Llama3Model
from puna.pipelines.architectures.llama3.model_config import Llama3Config
from puna.pipelines.architectures.llama3.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.lib import SupportedArchitecture, SupportedEncoding

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="LlamaForCausalLM",
        example_repo_ids=(
            "meta-llama/Llama-3.1-8B-Instruct",
            "meta-llama/Llama-3.2-1B-Instruct",
            "meta-llama/Llama-3.2-3B-Instruct",
            "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
            "meta-llama/Llama-Guard-3-8B",
            "deepseek-ai/deepseek-coder-6.7b-instruct",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF",
        ),
        default_encoding=SupportedEncoding.q4_k,
        pipeline_model=Llama3Model,
        config=Llama3Config,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=Llama3Config.default_rope_type,
        multi_gpu_supported=True,
        gguf_architectures=("llama",),
    ),
)
