"""From files to logits: configuration, encoding, adapter and registry, for safetensors and for GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from puna.driver import CPU
from puna.dtype import DType
from puna.errors import InvalidRequestError, ModelNotFoundError, UnsupportedModelError
from puna.graph.quantization import QuantizationEncoding
from puna.graph.weights import WeightData
from puna.pipelines.architectures import register_all_models
from puna.pipelines.architectures.llama3 import Llama3Config, Llama3Model
from puna.pipelines.lib import (
    PIPELINE_REGISTRY,
    MAXModelConfig,
    PipelineConfig,
    PipelineRuntimeConfig,
    SupportedEncoding,
)
from support.llama_config import TINY, hf_config, llama_config, random_weights
from support.llama_model import FLOAT32_CACHE, Cache, contexts, session, step
from support.llama_reference import forward

PROMPTS = [[1, 2, 3], [4], [5, 6]]


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    register_all_models()


@pytest.fixture
def weights() -> dict[str, WeightData]:
    return random_weights(llama_config())


def directory_of(path: Path, weights: dict[str, WeightData], dtype: Any = np.float32, **changes: Any) -> Path:
    """A model in Hugging Face layout."""
    names = {name if name == "lm_head.weight" else f"model.{name}": data for name, data in weights.items()}
    save_file({name: data.data.astype(dtype) for name, data in names.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({**TINY, "torch_dtype": str(np.dtype(dtype)), **changes}))
    return path


def gguf_of(path: Path, weights: dict[str, WeightData], kind: gguf.GGMLQuantizationType | None = None) -> Path:
    """The same model as a GGUF file of Llama's kind: Q and K in pairs of neighbours."""
    file = path / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_vocab_size(TINY["vocab_size"])
    writer.add_context_length(TINY["max_position_embeddings"])
    writer.add_embedding_length(TINY["hidden_size"])
    writer.add_block_count(TINY["num_hidden_layers"])
    writer.add_feed_forward_length(TINY["intermediate_size"])
    writer.add_head_count(TINY["num_attention_heads"])
    writer.add_head_count_kv(TINY["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(TINY["rms_norm_eps"])
    writer.add_rope_freq_base(TINY["rope_theta"])
    parts = {
        "embed_tokens": "token_embd",
        "layers": "blk",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "lm_head": "output",
    }
    for name, data in weights.items():
        stored = "output_norm.weight" if name == "norm.weight" else name
        for ours, theirs in parts.items():
            stored = stored.replace(ours, theirs)
        array = data.data
        if "q_proj" in name or "k_proj" in name:
            array = array.reshape(-1, 2, 4, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
        array = np.ascontiguousarray(array, dtype=np.float32)
        if kind is not None and array.ndim == 2 and array.shape[-1] % 32 == 0:
            writer.add_tensor(stored, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def load(config: PipelineConfig) -> Llama3Model:
    architecture = PIPELINE_REGISTRY.retrieve(config)
    assert architecture.pipeline_model is Llama3Model
    kind = config.model.weights_format
    assert kind is not None
    return Llama3Model(
        config,
        session(),
        [CPU()],
        config.model.kv_cache,
        config.model.weights,
        architecture.weight_adapters[kind],
    )


def configure(path: Path, **options: Any) -> PipelineConfig:
    model = MAXModelConfig(model_path=str(path), kv_cache=FLOAT32_CACHE, **options)
    return PipelineConfig(model=model, runtime=PipelineRuntimeConfig(max_batch_size=4))


def check_logits(model: Llama3Model, config: Llama3Config, weights: dict[str, Any], tolerance: float = 1e-4) -> None:
    _, outputs = step(model, contexts(PROMPTS), Cache(model.kv_params, 3))
    for row, prompt in zip(outputs.logits.to_numpy(), PROMPTS, strict=True):
        expected = forward(config, weights, prompt)[0][-1]
        assert np.abs(row - expected).max() <= tolerance * np.abs(expected).max()


def finished(config: Llama3Config) -> Llama3Config:
    config.rms_norm_eps = TINY["rms_norm_eps"]
    return config


def test_a_directory_of_safetensors(tmp_path: Path, weights: dict[str, WeightData]) -> None:
    config = configure(directory_of(tmp_path, weights))
    assert config.model.resolved_encoding is SupportedEncoding.float32
    assert (config.model.rope_type, config.model.is_gguf, config.model.cast) == ("normal", False, None)
    assert config.runtime.max_batch_size == 4
    model = load(config)
    assert not model.config.interleaved_rope_weights
    check_logits(model, finished(llama_config()), {name: data.data for name, data in weights.items()})


def test_a_gguf_file_gives_the_same_logits(tmp_path: Path, weights: dict[str, WeightData]) -> None:
    config = configure(gguf_of(tmp_path, weights))
    assert (config.model.resolved_encoding, config.model.is_gguf) == (SupportedEncoding.float32, True)
    model = load(config)
    assert model.config.interleaved_rope_weights
    check_logits(model, finished(llama_config()), {name: data.data for name, data in weights.items()})


def test_bfloat16_runs(tmp_path: Path, weights: dict[str, WeightData]) -> None:
    config = configure(directory_of(tmp_path, weights, ml_dtypes.bfloat16))
    assert config.model.resolved_encoding is SupportedEncoding.bfloat16
    model = load(config)
    assert model.dtype is DType.bfloat16
    rounded = {name: data.data.astype(ml_dtypes.bfloat16).astype(np.float32) for name, data in weights.items()}
    check_logits(model, finished(llama_config()), rounded)


@pytest.mark.parametrize(("stored", "asked"), [(np.float32, "bfloat16"), (ml_dtypes.bfloat16, "float32")])
def test_float32_and_bfloat16_are_converted_on_request(
    tmp_path: Path, weights: dict[str, WeightData], stored: Any, asked: str
) -> None:
    model = load(configure(directory_of(tmp_path, weights, stored), quantization_encoding=asked))
    assert {str(array.dtype) for array in model.state_dict.values()} == {asked}
    rounded = {name: data.data.astype(ml_dtypes.bfloat16).astype(np.float32) for name, data in weights.items()}
    check_logits(model, finished(llama_config()), rounded)


@pytest.mark.parametrize("clip", [None, 0.4])
def test_40_packed_weights_run_with_every_option(
    tmp_path: Path, weights: dict[str, WeightData], clip: float | None
) -> None:
    """Blocks are exact: the reference runs on what they decode to, and a clamp has its effect with them too."""
    kind = gguf.GGMLQuantizationType.Q8_0
    config = configure(gguf_of(tmp_path, weights, kind))
    assert config.model.resolved_encoding is SupportedEncoding.q8_0
    if clip is not None:
        config.model.huggingface_config = hf_config(clip_qkv=clip)
    model = load(config)
    assert (model.dtype, model.config.model_quantization_encoding) == (DType.uint8, QuantizationEncoding.Q8_0)
    decoded = {}
    for name, data in weights.items():
        is_packed = len(data.shape) == 2 and data.shape[1] % 32 == 0
        array = data.data
        decoded[name] = gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind) if is_packed else array
    check_logits(model, finished(llama_config(hf_config(clip_qkv=clip))), decoded)


def test_23_nothing_becomes_bfloat16_unasked(tmp_path: Path, weights: dict[str, WeightData]) -> None:
    model = load(configure(directory_of(tmp_path, weights)))
    assert {str(array.dtype) for array in model.state_dict.values()} == {"float32"}


def test_24_the_default_encoding_is_the_documented_one() -> None:
    llama = PIPELINE_REGISTRY.architectures["LlamaForCausalLM"]
    assert llama.default_encoding is SupportedEncoding.q4_k
    documented = {"gptq", "q4_k", "q4_0", "q6_k", "float32", "bfloat16", "float8_e4m3fn", "float4_e2m1fnx2"}
    assert documented <= set(llama.supported_encodings)
    assert (llama.rope_type, llama.multi_gpu_supported, llama.default_weights_format) == ("normal", True, "safetensors")


@pytest.mark.parametrize("asked", ["q4_0", "float16"])
def test_an_encoding_that_the_files_do_not_hold(tmp_path: Path, weights: dict[str, WeightData], asked: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"model\.safetensors holds no"):
        configure(directory_of(tmp_path, weights), quantization_encoding=asked)


def test_lengths_are_checked_before_anything_is_loaded(tmp_path: Path, weights: dict[str, WeightData]) -> None:
    directory_of(tmp_path, weights)
    with pytest.raises(InvalidRequestError, match="max_length"):
        configure(tmp_path, max_length=65)
    model = MAXModelConfig(model_path=str(tmp_path))
    with pytest.raises(InvalidRequestError, match="max_batch_total_tokens"):
        PipelineConfig(model=model, runtime=PipelineRuntimeConfig(max_batch_total_tokens=63))


def test_an_encoding_that_does_not_run(tmp_path: Path, weights: dict[str, WeightData]) -> None:
    with pytest.raises(UnsupportedModelError, match="float6_e2m3fn"):
        configure(directory_of(tmp_path, weights), quantization_encoding="float6_e2m3fn")


def test_an_unknown_architecture_lists_what_there_is(tmp_path: Path, weights: dict[str, WeightData]) -> None:
    with pytest.raises(UnsupportedModelError, match="MambaForCausalLM") as error:
        configure(directory_of(tmp_path, weights, architectures=["MambaForCausalLM"], model_type="mamba"))
    assert "LlamaForCausalLM" in str(error.value)


def test_an_explicit_file_wins_over_discovery(tmp_path: Path, weights: dict[str, WeightData]) -> None:
    directory_of(tmp_path, weights)
    other = tmp_path / "other"
    other.mkdir()
    file = gguf_of(other, weights)
    config = configure(tmp_path, weight_path=[file])
    assert config.model.is_gguf
    assert load(config).config.interleaved_rope_weights
    with pytest.raises(ModelNotFoundError, match=r"gone\.gguf"):
        configure(tmp_path, weight_path=[other / "gone.gguf"])


def test_an_untied_model_without_an_output_matrix_does_not_load(tmp_path: Path, weights: dict[str, WeightData]) -> None:
    del weights["lm_head.weight"]
    with pytest.raises(ValueError, match=r"lm_head\.weight"):
        load(configure(directory_of(tmp_path, weights)))


def test_12_a_tied_model_ignores_its_separate_output_matrix(tmp_path: Path, weights: dict[str, WeightData]) -> None:
    model = load(configure(directory_of(tmp_path, weights, tie_word_embeddings=True)))
    assert "lm_head.weight" not in model.state_dict
    config = finished(llama_config())
    config.tie_word_embeddings = True
    check_logits(model, config, {name: data.data for name, data in weights.items()})
