"""The registry's entries for Baichuan."""

from __future__ import annotations

from typing import Final

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.baichuan.model import BaichuanModel
from puna.pipelines.architectures.baichuan.model_config import BaichuanConfig
from puna.pipelines.architectures.baichuan.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.lib import SupportedArchitecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Final = (
    SupportedArchitecture(
        name="BaichuanForCausalLM",
        example_repo_ids=("baichuan-inc/Baichuan2-7B-Chat",),
        pipeline_model=BaichuanModel,
        config=BaichuanConfig,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
        rope_type=BaichuanConfig.default_rope_type,
        gguf_architectures=("baichuan",),
    ),
    SupportedArchitecture(
        name="BaiChuanForCausalLM",
        example_repo_ids=("baichuan-inc/Baichuan-7B",),
        pipeline_model=BaichuanModel,
        config=BaichuanConfig,
        weight_adapters={WeightsFormat.safetensors: safetensors_state_dict},
        rope_type=BaichuanConfig.default_rope_type,
        written_gguf_architecture="baichuan",
    ),
)
