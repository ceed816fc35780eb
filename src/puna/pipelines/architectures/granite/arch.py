"""The registry's entry for Granite."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.llama3 import Llama3Config, Llama3Model
from puna.pipelines.architectures.llama3.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.lib import SupportedArchitecture, SupportedEncoding

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="GraniteForCausalLM",
        example_repo_ids=("ibm-granite/granite-3.1-2b-instruct", "ibm-granite/granite-3.1-8b-instruct"),
        default_encoding=SupportedEncoding.float32,
        pipeline_model=Llama3Model,
        config=Llama3Config,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        default_weights_format=WeightsFormat.gguf,
        rope_type="normal",
        gguf_architectures=("granite",),
    ),
)
