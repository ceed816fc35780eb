"""Configurations against transformers' classes: defaults of absent keys, and real configurations as input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from puna.pipelines.architectures import register_all_models
from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.lib import (
    PIPELINE_REGISTRY,
    KVCacheConfig,
    MAXModelConfig,
    PipelineConfig,
    PipelineRuntimeConfig,
)
from puna.pipelines.lib.family_defaults import FAMILIES as DEFAULTS
from puna.pipelines.lib.huggingface_config import HuggingFaceConfig
from support.checkpoints import FAMILIES, REARRANGED, ROPE_CASES, tiny_config

pytestmark = pytest.mark.oracle

# Keys that transformers keeps elsewhere or derives.
DERIVED = {"rope_theta", "rope_local_base_freq"}


@pytest.mark.parametrize("family", sorted(DEFAULTS.keys() - set(REARRANGED)))
def test_defaults_are_those_of_transformers(family: str) -> None:
    theirs = AutoConfig.for_model(family)
    mine = HuggingFaceConfig({"model_type": family})
    for key in DEFAULTS[family].values.keys() - DERIVED:
        expected = getattr(theirs, key)
        if key == "sliding_window" and family in ("qwen2", "qwen3"):
            expected = 4096  # the class erases it where use_sliding_window is off
        assert getattr(mine, key, None) == expected, key
    rope = theirs.rope_parameters.get("full_attention", theirs.rope_parameters)
    assert mine.rope_theta == rope["rope_theta"]
    assert rope["rope_type"] == "default" and mine.rope_scaling is None
    if "sliding_attention" in theirs.rope_parameters:
        assert mine.rope_local_base_freq == theirs.rope_parameters["sliding_attention"]["rope_theta"]
    assert mine.architectures == [DEFAULTS[family].architecture]
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert Llama3Config.get_head_dim(mine) == head_dim


def values_of(huggingface_config: Any) -> Any:
    """The configuration that a model would be made of."""
    register_all_models()
    architecture = PIPELINE_REGISTRY.find(huggingface_config)
    model = MAXModelConfig(quantization_encoding="float32", kv_cache=KVCacheConfig())
    model.huggingface_config = huggingface_config
    pipeline = PipelineConfig(model=model, runtime=PipelineRuntimeConfig(defer_resolve=True, max_batch_size=1))
    config = architecture.config.initialize(pipeline)
    assert isinstance(config, Llama3Config)
    config.finalize(huggingface_config, {}, config.return_logits)
    return config


@pytest.mark.parametrize(("family", "rope"), [case for case in ROPE_CASES if case[0] not in REARRANGED])
def test_real_configurations_are_accepted(tmp_path: Path, family: str, rope: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(family, rope)))
    mine, theirs = HuggingFaceConfig.from_directory(tmp_path), AutoConfig.from_pretrained(tmp_path)
    assert values_of(mine) == values_of(theirs)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in REARRANGED])
def test_what_transformers_saves_is_read_alike(tmp_path: Path, family: str) -> None:
    """The newest spelling: everything about rotary embedding under `rope_parameters`."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    rope = {"phi3": "longrope", "gemma3_text": "linear"}.get(family, "yarn")
    (first / "config.json").write_text(json.dumps(tiny_config(family, rope)))
    AutoConfig.from_pretrained(first).save_pretrained(second)
    assert "rope_parameters" in json.loads((second / "config.json").read_text())
    mine = [values_of(HuggingFaceConfig.from_directory(directory)) for directory in (first, second)]
    assert mine[0] == mine[1]
