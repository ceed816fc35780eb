"""The registry's entry for Ernie 4.5."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.ernie4_5.model import Ernie4_5Model
from puna.pipelines.architectures.ernie4_5.model_config import Ernie4_5Config
from puna.pipelines.architectures.llama3.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.lib import SupportedArchitecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="Ernie4_5ForCausalLM",
        example_repo_ids=("baidu/ERNIE-4.5-0.3B-PT",),
        pipeline_model=Ernie4_5Model,
        config=Ernie4_5Config,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=Ernie4_5Config.default_rope_type,
        gguf_architectures=("ernie4_5",),
    ),
)
