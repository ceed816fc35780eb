"""What families refuse, and what they make of keys and tensors that only they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from puna.errors import InvalidRequestError, UnsupportedModelError, WeightsError
from puna.graph.weights import load_weights
from puna.pipelines.architectures import register_all_models
from puna.pipelines.architectures.baichuan.weight_adapters import safetensors_state_dict as baichuan_state_dict
from puna.pipelines.architectures.internlm.weight_adapters import internlm2_state_dict
from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.lib import PIPELINE_REGISTRY, KVCacheConfig, MAXModelConfig, PipelineConfig, PipelineRuntimeConfig
from puna.pipelines.lib.huggingface_config import HuggingFaceConfig
from support.checkpoints import tiny_config


def config_of(family: str, *, window: int | None = None, **changes: Any) -> Any:
    """The configuration that a model would be made of."""
    register_all_models()
    huggingface_config = HuggingFaceConfig(tiny_config(family, **changes), source="config.json")
    model = MAXModelConfig(quantization_encoding="float32", kv_cache=KVCacheConfig(), sliding_window=window)
    model.huggingface_config = huggingface_config
    pipeline = PipelineConfig(model=model, runtime=PipelineRuntimeConfig(defer_resolve=True, max_batch_size=1))
    config = PIPELINE_REGISTRY.find(huggingface_config).config.initialize(pipeline)
    assert isinstance(config, Llama3Config)
    config.finalize(huggingface_config, {}, config.return_logits)
    return config


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("baichuan", {"hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads": 40}, "13B use ALiBi"),
        ("minicpm", {"sparse_config": {"kernel_size": 32}}, "sparse_config"),
        ("minicpm", {"num_experts": 8}, "num_experts = 8"),
        ("cohere", {"use_qk_norm": True}, "use_qk_norm = True in config.json"),
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm"),
        ("stablelm", {"use_parallel_residual": True}, "use_parallel_residual"),
        ("olmo3", {"layer_types": ["sliding_attention"] * 3}, "5 entries of full_attention, sliding_attention"),
        ("exaone4", {"layer_types": ["chunked_attention"] * 5}, "layer_types"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "5 entries of 0, 1"),
        ("smollm3", {"no_rope_layers": [1, 2, 0, 0, 0]}, "5 entries of 0, 1"),
        ("exaone", {"num_hidden_layers": 4, "rms_norm_eps": 1e-6, "head_dim": 3}, "head_dim"),
        ("internlm3", {"bias": False, "mlp_bias": True}, "bias"),
    ],
)
def test_what_a_family_does_not_compute_is_refused(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        config_of(family, **changes)


OTHER_KINDS: list[tuple[str, dict[str, Any], str]] = [
    ("DeepseekV2ForCausalLM", {"kv_lora_rank": 512}, "kv_lora_rank = 512 .*without latent attention"),
    ("MiniCPM3ForCausalLM", {"q_lora_rank": 768}, "q_lora_rank = 768"),
    ("BloomForCausalLM", {"alibi": True}, "alibi = True .*without ALiBi"),
    ("FalconForCausalLM", {"alibi": True}, "alibi = True"),
    ("GraniteForCausalLM", {"position_embedding_type": "alibi"}, "position_embedding_type = 'alibi'"),
    ("MixtralForCausalLM", {"num_local_experts": 8}, "num_local_experts = 8 .*without mixtures of experts"),
    ("Qwen3MoeForCausalLM", {"num_experts": 128}, "num_experts = 128"),
    ("DeepseekForCausalLM", {"n_routed_experts": 64}, "n_routed_experts = 64"),
    ("MambaForCausalLM", {"state_size": 16}, "state_size = 16 .*without recurrent layers"),
    ("FalconH1ForCausalLM", {"mamba_d_state": 256}, "mamba_d_state = 256"),
    ("RwkvForCausalLM", {"rescale_every": 6}, "rescale_every = 6"),
    ("GPT2LMHeadModel", {}, "architectures = .*GPT2LMHeadModel"),
]


@pytest.mark.parametrize(("architecture", "keys", "message"), OTHER_KINDS)
def test_other_kinds_of_models_are_refused_by_the_key(architecture: str, keys: dict[str, Any], message: str) -> None:
    register_all_models()
    config = HuggingFaceConfig({"architectures": [architecture], **keys}, source="config.json")
    with pytest.raises(UnsupportedModelError, match=message):
        PIPELINE_REGISTRY.find(config)


def test_a_key_without_effect_is_no_other_kind() -> None:
    register_all_models()
    values = {**tiny_config("llama"), "num_experts": 0, "alibi": False, "num_local_experts": 1, "kv_lora_rank": None}
    assert PIPELINE_REGISTRY.find(HuggingFaceConfig(values)).name == "LlamaForCausalLM"


@pytest.mark.parametrize("family", ["olmo3", "cohere2", "exaone4", "qwen3", "smollm3"])
def test_windows_of_layers_are_not_an_option(family: str) -> None:
    with pytest.raises(InvalidRequestError, match="not an option of this architecture"):
        config_of(family, window=64)


def test_layers_without_rotation() -> None:
    assert config_of("smollm3").decoder_spec().unrotated_layers == {3}
    assert config_of("smollm3", no_rope_layers=[0, 1, 1, 1, 0]).decoder_spec().unrotated_layers == {0, 4}
    assert config_of("smollm3", no_rope_layer_interval=2).decoder_spec().unrotated_layers == {1, 3}
    assert config_of("exaone4").decoder_spec().unrotated_layers == {3}
    assert config_of("exaone4", sliding_window=None, layer_types=None).decoder_spec().sliding_window == 4096


def test_only_layers_without_a_window_are_stretched() -> None:
    spec = config_of("olmo3", rope="yarn").decoder_spec()
    assert spec.rope.scaling is not None
    assert [spec.rope_name(layer) for layer in range(5)] == ["window", "window", "window", "default", "window"]
    assert spec.window_rope is not None and spec.window_rope.scaling is None


def weights_of(directory: Path, tensors: dict[str, Any]) -> dict[str, Any]:
    save_file(tensors, directory / "model.safetensors")
    return dict(load_weights(directory / "model.safetensors").items())


def test_rows_of_grouped_qkv_must_be_whole_heads(tmp_path: Path) -> None:
    config = HuggingFaceConfig(tiny_config("internlm2"))
    name = "model.layers.0.attention.wqkv.weight"
    with pytest.raises(WeightsError, match=r"has 31 rows, not 9 \+ 2 \* 3 heads of equal size"):
        internlm2_state_dict(weights_of(tmp_path, {name: np.ones((31, 72), np.float32)}), huggingface_config=config)


@pytest.mark.parametrize(("vocab_size", "is_normalized"), [(125696, True), (64000, False)])
def test_the_output_matrix_of_baichuan_2_is_normalized(tmp_path: Path, vocab_size: int, is_normalized: bool) -> None:
    rows = np.array([[3, 4], [0, 0], [1, 0]], ml_dtypes.bfloat16)
    config = HuggingFaceConfig(tiny_config("baichuan", vocab_size=vocab_size))
    found = baichuan_state_dict(weights_of(tmp_path, {"lm_head.weight": rows}), huggingface_config=config)
    expected = np.array([[0.6, 0.8], [0, 0], [1, 0]], ml_dtypes.bfloat16) if is_normalized else rows
    np.testing.assert_array_equal(found["lm_head.weight"].data, expected)
    assert found["lm_head.weight"].format == "BF16"
