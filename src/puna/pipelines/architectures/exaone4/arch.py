"""The registry's entry for EXAONE 4."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.exaone4.model import Exaone4Model
from puna.pipelines.architectures.exaone4.model_config import Exaone4Config
from puna.pipelines.architectures.olmo2.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.lib import SupportedArchitecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="Exaone4ForCausalLM",
        example_repo_ids=("LGAI-EXAONE/EXAONE-4.0-1.2B", "LGAI-EXAONE/EXAONE-4.0-32B"),
        pipeline_model=Exaone4Model,
        config=Exaone4Config,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=Exaone4Config.default_rope_type,
        gguf_architectures=("exaone4",),
    ),
)
