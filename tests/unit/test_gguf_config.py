"""GGUF metadata as a configuration: what each key means, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from puna.errors import UnsupportedModelError, WeightsError
from puna.graph.weights import GGUFWeights
from puna.pipelines.lib.huggingface_config import HuggingFaceConfig
from support.checkpoints import tiny_config, tiny_tensors
from support.gguf_checkpoints import write_gguf

SIZES: dict[str, Any] = {
    "context_length": 64,
    "embedding_length": 32,
    "block_count": 1,
    "feed_forward_length": 48,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
SHAPES = {
    "token_embd.weight": (40, 32),
    "blk.0.attn_q.weight": (32, 32),
    "blk.0.attn_k.weight": (16, 32),
    "blk.0.attn_v.weight": (16, 32),
    "blk.0.attn_output.weight": (32, 32),
    "blk.0.ffn_gate.weight": (48, 32),
    "blk.0.ffn_up.weight": (48, 32),
    "blk.0.ffn_down.weight": (32, 48),
}
FREQS = [1.0, 1.0, 2.0, 4.0]


def config_of(
    directory: Path, architecture: str = "llama", tensors: dict[str, Any] | None = None, **changes: Any
) -> HuggingFaceConfig:
    """The configuration of a file with these keys (dots as `__`, None leaves one out), and these further tensors."""
    path = directory / "model.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    keys = SIZES | {key.replace("__", "."): value for key, value in changes.items()}
    for key, value in keys.items():
        full = f"{architecture}.{key}"
        match value:
            case None:
                continue
            case bool():
                writer.add_bool(full, value)
            case int():
                writer.add_uint32(full, value)
            case float():
                writer.add_float32(full, value)
            case str():
                writer.add_string(full, value)
            case _:
                writer.add_array(full, value)
    values: dict[str, Any] = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()} | (tensors or {})
    for name, array in values.items():
        if array is not None:
            writer.add_tensor(name, np.asarray(array, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return HuggingFaceConfig.from_gguf(GGUFWeights(path))


def test_sizes(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (32, 1, 48)
    assert (config.num_attention_heads, config.num_key_value_heads, config.vocab_size) == (4, 2, 40)
    assert config.max_position_embeddings == 64
    assert config.rms_norm_eps == np.float32(1e-5)
    assert (config.rope_theta, config.rope_scaling) == (10000.0, None)
    assert config.architectures == ["LlamaForCausalLM"]
    assert (config.gguf_architecture, config.hidden_act) == ("llama", "silu")
    assert config.source == str(tmp_path / "model.gguf")


def test_output_matrix_tells_whether_it_is_tied(tmp_path: Path) -> None:
    assert config_of(tmp_path).tie_word_embeddings is True
    assert config_of(tmp_path, tensors={"output.weight": np.zeros((40, 32))}).tie_word_embeddings is False


def test_lists_of_equal_values_are_one_value(tmp_path: Path) -> None:
    assert config_of(tmp_path, attention__head_count_kv=[2]).num_key_value_heads == 2
    with pytest.raises(UnsupportedModelError, match=r"head_count_kv = \[2, 1\].*one value for all layers"):
        config_of(tmp_path, attention__head_count_kv=[2, 1])


def test_absent_kv_heads_are_all_heads(tmp_path: Path) -> None:
    tensors = {"blk.0.attn_k.weight": np.zeros((32, 32)), "blk.0.attn_v.weight": np.zeros((32, 32))}
    assert config_of(tmp_path, tensors=tensors, attention__head_count_kv=None).num_key_value_heads == 4


def test_a_window_makes_a_mistral(tmp_path: Path) -> None:
    config = config_of(tmp_path, attention__sliding_window=16)
    assert (config.architectures, config.sliding_window) == (["MistralForCausalLM"], 16)
    assert config_of(tmp_path, attention__sliding_window=0).architectures == ["LlamaForCausalLM"]


def test_share_of_a_head_that_is_rotated(tmp_path: Path) -> None:
    assert config_of(tmp_path, rope__dimension_count=8).partial_rotary_factor == 1
    for rotated in (2, 4, 6):
        assert int(8 * config_of(tmp_path, rope__dimension_count=rotated).partial_rotary_factor) == rotated
    for rotated in (0, 9):
        with pytest.raises(WeightsError, match=r"rope\.dimension_count"):
            config_of(tmp_path, rope__dimension_count=rotated)


def test_linear_scaling(tmp_path: Path) -> None:
    linear = {"rope_type": "linear", "factor": 4.0}
    assert config_of(tmp_path, rope__scaling__type="linear", rope__scaling__factor=4.0).rope_scaling == linear
    assert config_of(tmp_path, rope__scaling__factor=4.0).rope_scaling == linear
    assert config_of(tmp_path, rope__scale_linear=4.0).rope_scaling == linear
    assert config_of(tmp_path, rope__scaling__type="none", rope__scaling__factor=4.0).rope_scaling is None


def test_yarn(tmp_path: Path) -> None:
    keys = {
        "rope__scaling__type": "yarn",
        "rope__scaling__factor": 4.0,
        "rope__scaling__original_context_length": 16,
        "rope__scaling__attn_factor": 0.5,
        "rope__scaling__yarn_beta_fast": 16.0,
    }
    scaling = config_of(tmp_path, **keys).rope_scaling
    assert scaling.pop("attention_factor") == pytest.approx((0.1 * np.log(4.0) + 1) * 0.5)
    assert scaling == {
        "rope_type": "yarn",
        "factor": 4.0,
        "beta_fast": 16.0,
        "original_max_position_embeddings": 16,
    }


def test_factors_as_a_tensor(tmp_path: Path) -> None:
    freqs = {"rope_freqs.weight": FREQS}
    assert config_of(tmp_path, tensors=freqs).rope_scaling == {"rope_type": "factors", "factors": FREQS}
    assert config_of(tmp_path, tensors={"rope_freqs.weight": [1.0] * 4}).rope_scaling is None
    with pytest.raises(UnsupportedModelError, match=r"rope\.scaling\.factor"):
        config_of(tmp_path, tensors=freqs, rope__scaling__factor=2.0)
    with pytest.raises(UnsupportedModelError, match=r"factors"):
        config_of(tmp_path, tensors={"rope_freqs.weight": FREQS[:3]})
    with pytest.raises(UnsupportedModelError, match=r"factors"):
        config_of(tmp_path, tensors={"rope_freqs.weight": [1.0, 1.0, 0.0, 4.0]})


def test_longrope(tmp_path: Path) -> None:
    lists = {"rope_factors_short.weight": [1.0] * 4, "rope_factors_long.weight": FREQS}
    keys = {"rope__scaling__original_context_length": 16, "rope__scaling__attn_factor": 1.25}
    assert config_of(tmp_path, tensors=lists, **keys).rope_scaling == {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": FREQS,
        "attention_factor": 1.25,
        "original_max_position_embeddings": 16,
    }
    with pytest.raises(WeightsError, match=r"rope_factors_long\.weight.*is missing"):
        config_of(tmp_path, tensors=lists | {"rope_factors_long.weight": None}, **keys)
    with pytest.raises(WeightsError, match=r"original_context_length.*is missing"):
        config_of(tmp_path, tensors=lists)


@pytest.mark.parametrize("key", [key for key in SIZES if key != "attention.head_count_kv"])
def test_required_keys(tmp_path: Path, key: str) -> None:
    with pytest.raises(WeightsError, match=rf"llama\.{key}'.*is missing"):
        config_of(tmp_path, **{key.replace(".", "__"): None})


@pytest.mark.parametrize(
    "keys",
    [
        {"expert_count": 8},
        {"use_parallel_residual": True},
        {"attention__causal": False},
        {"final_logit_softcapping": 30.0},
        {"attention__clamp_kqv": 8.0},
        {"attention__scale": 0.5},
        {"logit_scale": 8.0},
        {"rope__scaling__type": "dynamic"},
        {"rope__scaling__attn_factor": 2.0},
        {"rope__scaling__yarn_log_multiplier": 0.1},
        {"attention__value_length": 4},
        {"attention__q_lora_rank": 4},
        {"something_new": 1},
    ],
)
def test_keys_that_would_change_the_result(tmp_path: Path, keys: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        config_of(tmp_path, **keys)
    assert error.value.key == "llama." + next(iter(keys)).replace("__", ".")
    assert error.value.file == str(tmp_path / "model.gguf")


def test_neutral_values_are_accepted(tmp_path: Path) -> None:
    neutral = {
        "expert_count": 0,
        "use_parallel_residual": False,
        "attention__causal": True,
        "logit_scale": 1.0,
        "vocab_size": 40,
        "tensor_data_layout": "Meta AI original pth",
        "rope__scaling__finetuned": False,
    }
    assert config_of(tmp_path, **neutral) == config_of(tmp_path)


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ({"embedding_length": 33}, WeightsError),
        ({"embedding_length": "32"}, WeightsError),
        ({"attention__head_count": 0}, WeightsError),
        ({"attention__head_count": 8}, WeightsError),
        ({"attention__head_count_kv": 1}, WeightsError),
        ({"attention__head_count_kv": 3}, WeightsError),
        ({"attention__key_length": 16}, WeightsError),
        ({"feed_forward_length": 47}, WeightsError),
        ({"block_count": 2}, WeightsError),
        ({"block_count": (1 << 31) - 1}, WeightsError),
        ({"block_count": 0}, WeightsError),
        ({"attention__layer_norm_rms_epsilon": float("nan")}, WeightsError),
        ({"attention__layer_norm_rms_epsilon": 0.0}, UnsupportedModelError),
        ({"rope__freq_base": 0.0}, UnsupportedModelError),
        ({"rope__freq_base": float("inf")}, WeightsError),
        ({"context_length": 0}, UnsupportedModelError),
    ],
)
def test_absurd_values(tmp_path: Path, keys: dict[str, Any], error: Any) -> None:
    with pytest.raises(error):
        config_of(tmp_path, **keys)


def test_missing_embedding(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"token_embd\.weight.*is missing"):
        config_of(tmp_path, tensors={"token_embd.weight": None})


def test_granite_scales(tmp_path: Path) -> None:
    scales = {"embedding_scale": 12.0, "residual_scale": 0.25, "attention__scale": 0.125, "logit_scale": 8.0}
    config = config_of(tmp_path, "granite", **scales)
    assert (config.embedding_multiplier, config.residual_multiplier) == (12.0, 0.25)
    assert (config.attention_multiplier, config.logits_scaling) == (0.125, 8.0)


def test_granite_without_a_scale_has_the_usual_one(tmp_path: Path) -> None:
    assert "attention_multiplier" not in config_of(tmp_path, "granite", attention__scale=0.0)


def test_olmo_epsilon_is_fixed(tmp_path: Path) -> None:
    keys = {"attention__layer_norm_rms_epsilon": None, "attention__clamp_kqv": 8.0}
    config = config_of(tmp_path, "olmo", attention__layer_norm_epsilon=1e-5, **keys)
    assert config.clip_qkv == 8.0
    with pytest.raises(UnsupportedModelError, match="layer_norm_epsilon"):
        config_of(tmp_path, "olmo", attention__layer_norm_epsilon=1e-6, **keys)


def test_unknown_architecture_is_the_registrys_to_refuse(tmp_path: Path) -> None:
    from puna.pipelines.architectures import register_all_models
    from puna.pipelines.lib import PIPELINE_REGISTRY

    register_all_models()
    config = config_of(tmp_path, "gptneox")
    with pytest.raises(UnsupportedModelError, match=r"general\.architecture = 'gptneox' in .*model\.gguf"):
        PIPELINE_REGISTRY.find(config)


def test_tokenizer_ids(tmp_path: Path) -> None:
    values = tiny_config("llama")
    weights = GGUFWeights(write_gguf(tmp_path / "model.gguf", values, tiny_tensors(values)))
    config = HuggingFaceConfig.from_gguf(weights)
    assert (config.bos_token_id, config.eos_token_id) == (0, 1)
    assert "pad_token_id" not in config


def test_what_a_file_states(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert config.origin("hidden_size") == "model.gguf"
    assert config.origin("rope_theta") == config.origin("hidden_act") == "default"
