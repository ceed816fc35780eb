"""`Llama3Config` from real transformers configurations."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig, LlamaConfig

from puna.nn.rotary_embedding import (
    DynamicRopeScalingParams,
    LinearRopeScalingParams,
    Llama3RopeScalingParams,
    LongRoPEScalingParams,
    YarnRopeScalingParams,
)
from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.lib.huggingface_config import HuggingFaceConfig
from support.llama_config import model_config, pipeline_config

pytestmark = pytest.mark.oracle

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "vocab_size": 100,
    "max_position_embeddings": 256,
}
KINDS: dict[str, tuple[dict[str, Any], type[Any] | None]] = {
    "default": ({"rope_type": "default", "rope_theta": 5e4}, None),
    "linear": ({"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4}, LinearRopeScalingParams),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5e4}, DynamicRopeScalingParams),
    "yarn": (
        {"rope_type": "yarn", "factor": 2.0, "rope_theta": 5e4, "original_max_position_embeddings": 128},
        YarnRopeScalingParams,
    ),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
            "rope_theta": 5e4,
        },
        Llama3RopeScalingParams,
    ),
    "longrope": (
        {
            "rope_type": "longrope",
            "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8,
            "original_max_position_embeddings": 64,
            "rope_theta": 5e4,
        },
        LongRoPEScalingParams,
    ),
}


def initialize(config: Any) -> Llama3Config:
    return Llama3Config.initialize(pipeline_config(model=model_config(config)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_configuration_is_accepted_as_it_is(kind: str) -> None:
    parameters, record = KINDS[kind]
    real = LlamaConfig(**SIZES, rope_parameters=dict(parameters), tie_word_embeddings=True)
    config = initialize(real)
    assert (config.hidden_size, config.num_hidden_layers, config.head_dim) == (64, 3, 16)
    assert (config.rope_theta, config.max_seq_len) == (5e4, 256)
    found = config.longrope_scaling_params or config.rope_scaling_params
    assert type(found) is (record or type(None))


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_configuration_and_our_record_of_it_say_the_same(kind: str, tmp_path: Any) -> None:
    real = LlamaConfig(**SIZES, rope_parameters=dict(KINDS[kind][0]), architectures=["LlamaForCausalLM"])
    real.save_pretrained(tmp_path)
    assert initialize(HuggingFaceConfig.from_directory(tmp_path)) == initialize(AutoConfig.from_pretrained(tmp_path))


def test_the_defaults_of_a_silent_configuration() -> None:
    config = initialize(LlamaConfig())
    ours = initialize(HuggingFaceConfig({**LlamaConfig().to_dict(), "architectures": ["LlamaForCausalLM"]}))
    assert (config.hidden_size, config.num_attention_heads, config.max_seq_len) == (4096, 32, 2048)
    assert ours == config
