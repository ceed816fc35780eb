"""The registry's entry for EXAONE 3."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.exaone.model import ExaoneModel
from puna.pipelines.architectures.exaone.model_config import ExaoneConfig
from puna.pipelines.architectures.exaone.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.lib import SupportedArchitecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="ExaoneForCausalLM",
        example_repo_ids=("LGAI-EXAONE/EXAONE-3.0-7.8B-Instruct", "LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct"),
        pipeline_model=ExaoneModel,
        config=ExaoneConfig,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=ExaoneConfig.default_rope_type,
        gguf_architectures=("exaone",),
    ),
)
