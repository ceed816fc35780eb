"""The registry's entry for Seed-OSS."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.llama3 import Llama3Config, Llama3Model
from puna.pipelines.architectures.llama3.weight_adapters import safetensors_state_dict
from puna.pipelines.architectures.seed_oss.weight_adapters import gguf_state_dict
from puna.pipelines.lib import SupportedArchitecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="SeedOssForCausalLM",
        example_repo_ids=("ByteDance-Seed/Seed-OSS-36B-Instruct",),
        pipeline_model=Llama3Model,
        config=Llama3Config,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type="neox",
        gguf_architectures=("seed_oss",),
    ),
)
