"""The registry's entry for OLMo."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.architectures.llama3.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.architectures.olmo.model import OlmoModel
from puna.pipelines.lib import SupportedArchitecture, SupportedEncoding

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="OlmoForCausalLM",
        example_repo_ids=("allenai/OLMo-1B-hf", "allenai/OLMo-7B-0724-hf"),
        default_encoding=SupportedEncoding.float32,
        pipeline_model=OlmoModel,
        config=Llama3Config,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type="normal",
        gguf_architectures=("olmo",),
    ),
)
