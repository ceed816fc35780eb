"""Configurations: what they may say, what they mean by saying nothing, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from puna.errors import UnsupportedModelError, WeightsError
from puna.pipelines.architectures import register_all_models
from puna.pipelines.lib import PIPELINE_REGISTRY
from puna.pipelines.lib.family_defaults import FAMILIES
from puna.pipelines.lib.huggingface_config import HuggingFaceConfig
from support.checkpoints import tiny_config

FACTORS = [1.0, 1.5, 2.0, 2.5, 3.0]


def read(directory: Path, values: Any) -> HuggingFaceConfig:
    (directory / "config.json").write_text(values if isinstance(values, str) else json.dumps(values))
    return HuggingFaceConfig.from_directory(directory)


def test_attributes_are_keys(tmp_path: Path) -> None:
    config = read(tmp_path, tiny_config("llama", some_key={"nested": [1]}))
    assert config.hidden_size == 72
    assert config.some_key == {"nested": [1]}
    assert config.source == str(tmp_path / "config.json")
    assert getattr(config, "absent", None) is None
    with pytest.raises(AttributeError, match=r"absent is neither stated in .*config\.json"):
        _ = config.absent


def test_copies_and_pickles(tmp_path: Path) -> None:
    config = read(tmp_path, tiny_config("llama", "yarn"))
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_defaults_fill_what_is_absent() -> None:
    config = HuggingFaceConfig({"architectures": ["MistralForCausalLM"], "hidden_size": 64, "num_attention_heads": 8})
    assert (config.model_type, config.sliding_window, config.num_key_value_heads) == ("mistral", 4096, 8)
    assert config.origin("hidden_size") == "stated" and config.origin("sliding_window") == "default"


def test_null_is_a_statement() -> None:
    config = HuggingFaceConfig(tiny_config("mistral") | {"sliding_window": None, "head_dim": None})
    assert config.sliding_window is None
    assert "head_dim" not in config


def test_absent_kv_heads_are_all_heads() -> None:
    assert HuggingFaceConfig(tiny_config("llama", num_key_value_heads=None)).num_key_value_heads == 9


def test_architecture_follows_from_the_model_type() -> None:
    assert HuggingFaceConfig(tiny_config("qwen2", architectures=None)).architectures == ["Qwen2ForCausalLM"]


def test_nothing_is_imported_from_a_directory(tmp_path: Path) -> None:
    (tmp_path / "modeling_evil.py").write_text("raise SystemExit('imported')")
    read(tmp_path, tiny_config("llama", auto_map={"AutoConfig": "modeling_evil.Config"}))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", '"text"', "{", '{"a": NaN}', '{"a": Infinity}', "[" * 100_000, "\xff", "1" * 5000],
    ids=["empty", "list", "number", "text", "open", "nan", "infinity", "deep", "bytes", "digits"],
)
def test_files_that_are_no_json_object(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(WeightsError, match=r"config\.json"):
        HuggingFaceConfig.from_directory(tmp_path)


def test_missing_and_oversized_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"config\.json: cannot be read"):
        HuggingFaceConfig.from_directory(tmp_path)
    with pytest.raises(WeightsError, match="is larger than"):
        read(tmp_path, " " * (1 << 24) + "{}")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"architectures": None, "model_type": None}, "architectures"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"model_type": 3}, "model_type"),
        ({"model_type": "mistral"}, "model_type"),
    ],
)
def test_unclear_families(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        HuggingFaceConfig(tiny_config("llama") | changes, source="some/config.json")
    assert (error.value.key, error.value.file) == (key, "some/config.json")


def test_unknown_architectures_are_the_registrys_to_refuse() -> None:
    register_all_models()
    values = {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gptneox"}
    config = HuggingFaceConfig(values, source="x/config.json")
    with pytest.raises(UnsupportedModelError, match=r"GPTNeoXForCausalLM.* in x/config\.json .*LlamaForCausalLM"):
        PIPELINE_REGISTRY.find(config)


OUT_OF_RANGE = [
    ("hidden_size", [0, -1, 2.5, "72", True, 1 << 30, [72], 10**400]),
    ("num_hidden_layers", [0, (1 << 31) - 1]),
    ("num_attention_heads", [0, 1 << 20]),
    ("num_key_value_heads", [0, 2, 10]),
    ("head_dim", [0, 7, 1 << 20]),
    ("vocab_size", [0, 1 << 31]),
    ("intermediate_size", [0]),
    ("max_position_embeddings", [0, 1 << 40]),
    ("rms_norm_eps", [0, -1e-5, 2, "1e-5", 10**400]),
    ("rope_theta", [0, 1, -10000, 1e300]),
    ("partial_rotary_factor", [0, 0.5, 1.5, -1]),
    ("sliding_window", [0, -1, 1.5]),
    ("attention_multiplier", [0, -1]),
    ("logits_scaling", [0, -8]),
    ("embedding_multiplier", [1e9]),
    ("clip_qkv", [0, -8]),
    ("tie_word_embeddings", ["yes", 1]),
]


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in OUT_OF_RANGE for value in values])
def test_values_out_of_range(key: str, value: Any) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        HuggingFaceConfig(tiny_config("llama") | {key: value}, source="some/config.json")
    assert error.value.key == key
    assert "some/config.json" in str(error.value)


SCALING = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}
SPELLINGS: list[dict[str, Any]] = [
    {"rope_scaling": SCALING},
    {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}},
    {"rope_scaling": {**SCALING, "type": "yarn"}},
    {"rope_parameters": {**SCALING, "rope_theta": 10000.0}, "rope_theta": None},
    {"rope_parameters": {"full_attention": {**SCALING, "rope_theta": 10000.0}}},
    {"rope_parameters": {"full_attention": SCALING, "sliding_attention": SCALING}},
    {"rope_parameters": SCALING, "rope_scaling": SCALING},
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_rotary_scaling(spelling: dict[str, Any]) -> None:
    config = HuggingFaceConfig(tiny_config("llama") | spelling)
    assert config.rope_scaling == SCALING
    assert config.rope_theta == 10000.0
    assert "rope_parameters" not in config


@pytest.mark.parametrize(
    "section", [None, {}, {"rope_theta": 500.0}, {"rope_type": "default", "rope_theta": 500.0}, {"type": "default"}]
)
def test_spellings_of_no_scaling(section: Any) -> None:
    config = HuggingFaceConfig(tiny_config("llama") | {"rope_parameters": section})
    assert config.rope_scaling is None
    assert config.rope_theta == (500.0 if section and "rope_theta" in section else 10000.0)


def test_old_names_of_longrope() -> None:
    scaling = {"short_factor": FACTORS, "long_factor": FACTORS}
    config = HuggingFaceConfig(tiny_config("llama") | {"rope_scaling": {"type": "su", **scaling}})
    assert config.rope_scaling["rope_type"] == "longrope"
    six = {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
    for name in ("su", "yarn"):
        config = HuggingFaceConfig(tiny_config("phi3") | {"rope_scaling": {"type": name, **six}})
        assert config.rope_scaling == {"rope_type": "longrope", **six}


REFUSED_SECTIONS: list[tuple[Any, str]] = [
    ({"type": "mrope", "factor": 2.0}, "rope_type"),
    ({"type": ["yarn"]}, "rope_type"),
    ({"factor": 2.0}, "rope_scaling"),
    ("linear", "rope_scaling"),
    ({"type": "linear", "factor": 2.0, "surprise": 1}, "rope_scaling.surprise"),
    ({"type": "default", "mrope_section": [1]}, "rope_scaling.mrope_section"),
    ({"type": "linear", "factor": 0}, "rope_scaling.factor"),
    ({"type": "linear", "factor": "2"}, "rope_scaling.factor"),
    ({"type": "linear", "factor": 10**400}, "rope_scaling.factor"),
    ({"type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 1}, "rope_scaling.low_freq_factor"),
    ({"type": "yarn", "factor": 2, "original_max_position_embeddings": 1}, None),
    ({"type": "yarn", "factor": 2, "truncate": 1}, "rope_scaling.truncate"),
    ({"type": "longrope", "short_factor": FACTORS[:4], "long_factor": FACTORS}, "rope_scaling.short_factor"),
    ({"type": "longrope", "short_factor": FACTORS, "long_factor": [0, 1, 2, 3, 4]}, "rope_scaling.long_factor"),
    ({"type": "longrope", "short_factor": FACTORS, "long_factor": 2}, "rope_scaling.long_factor"),
    ({"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e6}}, "rope_scaling"),
]


@pytest.mark.parametrize(("section", "key"), REFUSED_SECTIONS)
def test_refused_rotary_settings(section: Any, key: str | None) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        HuggingFaceConfig(tiny_config("llama") | {"rope_scaling": section}, source="some/config.json")
    assert error.value.key == (key or "rope_scaling.original_max_position_embeddings")
    assert error.value.file == "some/config.json"


def test_contradictions_in_rotary_settings() -> None:
    other = {"rope_type": "linear", "factor": 2.0}
    with pytest.raises(UnsupportedModelError, match="rope_parameters"):
        HuggingFaceConfig(tiny_config("llama") | {"rope_scaling": SCALING, "rope_parameters": other})
    stated_twice = {"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 0.75}}
    with pytest.raises(UnsupportedModelError, match="partial_rotary_factor"):
        HuggingFaceConfig(tiny_config("phi3") | stated_twice)


def test_kinds_that_a_family_does_not_have() -> None:
    with pytest.raises(UnsupportedModelError, match="rope_type = 'linear'"):
        HuggingFaceConfig(tiny_config("phi3") | {"rope_scaling": {"type": "linear", "factor": 2.0}})


def test_every_family_of_the_table_is_registered() -> None:
    register_all_models()
    names = {name for family in FAMILIES.values() for name in (family.architecture, *family.other_architectures)}
    assert names == set(PIPELINE_REGISTRY.architectures)
