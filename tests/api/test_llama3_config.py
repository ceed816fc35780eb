"""`Llama3Config`: where each field comes from, and what its methods answer."""

from __future__ import annotations

import math
from typing import Any

import pytest

from puna.driver import DeviceSpec
from puna.dtype import DType
from puna.errors import InvalidRequestError, UnsupportedModelError
from puna.graph import DeviceRef
from puna.graph.quantization import QuantizationEncoding
from puna.nn.decoder_spec import ReturnHiddenStates, ReturnLogits
from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.lib import ArchConfigWithKVCache, KVCacheConfig, LoRAConfig, SpeculativeConfig
from support.llama_config import hf_config, llama_config, model_config, pipeline_config, weight


def test_the_protocol_check_passes() -> None:
    assert isinstance(llama_config(), ArchConfigWithKVCache)


def test_initialize_fills_every_early_field() -> None:
    multipliers = {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0}
    config = llama_config(hf_config(clip_qkv=3.5, **multipliers))
    assert (config.hidden_size, config.num_attention_heads, config.num_key_value_heads) == (32, 4, 2)
    assert (config.num_hidden_layers, config.intermediate_size, config.vocab_size) == (2, 48, 40)
    assert (config.rope_theta, config.rope_scaling_params, config.longrope_scaling_params) == (10000.0, None, None)
    assert (config.max_seq_len, config.dtype, config.interleaved_rope_weights) == (64, DType.float32, False)
    assert (config.model_quantization_encoding, config.quantization_config, config.lora_config) == (None, None, None)
    assert (config.embedding_multiplier, config.residual_multiplier, config.logits_scaling) == (12.0, 0.22, 8.0)
    assert (config.clip_qkv, config.devices) == (3.5, [DeviceRef.CPU()])
    assert config.attention_multiplier == math.sqrt(1 / 8)
    assert (config.use_subgraphs, config.data_parallel_degree) == (True, 1)
    assert config.kv_params.shape_per_block == (2, 2, 128, 2, 8)


def test_late_fields_keep_their_defaults_until_finalize() -> None:
    config = llama_config(hf_config(tie_word_embeddings=True))
    assert (config.return_logits, config.return_hidden_states) == (ReturnLogits.LAST_TOKEN, ReturnHiddenStates.NONE)
    assert (config.norm_method, config.norm_dtype, config.attention_bias) == ("rms_norm", None, False)
    assert (config.rms_norm_eps, config.tie_word_embeddings, config.quant_config) == (None, False, None)
    assert (config.stacked_mlp, config.stacked_qkv) == (False, False)


def test_absent_multipliers_do_nothing() -> None:
    config = llama_config()
    assert (config.embedding_multiplier, config.residual_multiplier, config.logits_scaling) == (1.0, 1.0, 1.0)
    assert config.clip_qkv is None


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers"])
def test_a_missing_required_key_is_refused_by_name(key: str) -> None:
    with pytest.raises(UnsupportedModelError, match=key):
        llama_config(hf_config(without=(key,)))


@pytest.mark.parametrize("value", ["32", 32.5, 0, True, [32]])
def test_a_required_key_of_the_wrong_kind_is_refused(value: object) -> None:
    with pytest.raises(UnsupportedModelError, match="hidden_size"):
        llama_config(hf_config(hidden_size=value))


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="hidden_act = 'gelu'"):
        llama_config(hf_config(hidden_act="gelu"))


def test_an_attention_window_is_refused_rather_than_ignored() -> None:
    with pytest.raises(UnsupportedModelError, match="sliding_window"):
        llama_config(hf_config(sliding_window=16))
    assert llama_config(hf_config(sliding_window=16, use_sliding_window=False)).max_seq_len == 64
    with pytest.raises(InvalidRequestError, match="sliding_window"):
        llama_config(model=model_config(sliding_window=16))


def test_initialize_without_a_configuration_names_the_path(tmp_path: Any) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    model = model_config(model_path=str(tmp_path))
    model.huggingface_config = None
    with pytest.raises(ValueError, match=str(tmp_path)) as error:
        Llama3Config.initialize(pipeline_config(model=model))
    assert "config.json" in str(error.value)


def test_initialize_needs_a_resolved_encoding() -> None:
    with pytest.raises(ValueError, match="quantization_encoding"):
        llama_config(model=model_config(quantization_encoding=None))


@pytest.mark.parametrize(
    ("encoding", "dtype", "blocks"),
    [
        ("float32", DType.float32, None),
        ("float16", DType.float16, None),
        ("bfloat16", DType.bfloat16, None),
        ("q4_k", DType.uint8, QuantizationEncoding.Q4_K),
        ("q8_0", DType.uint8, QuantizationEncoding.Q8_0),
    ],
)
def test_an_encoding_decides_dtype_and_block_format(
    encoding: str, dtype: DType, blocks: QuantizationEncoding | None
) -> None:
    config = llama_config(model=model_config(quantization_encoding=encoding))
    assert (config.dtype, config.model_quantization_encoding) == (dtype, blocks)


class TestAttentionMultiplier:
    """`calculate_attention_multiplier`: the documented figures."""

    def test_it_is_the_root_of_one_over_the_head_size(self) -> None:
        config = hf_config(hidden_size=4096, num_attention_heads=32)
        assert Llama3Config.calculate_attention_multiplier(config) == pytest.approx(0.0883883, abs=1e-7)

    def test_an_explicit_head_size_counts(self) -> None:
        config = hf_config(hidden_size=4096, num_attention_heads=32, head_dim=96)
        assert Llama3Config.calculate_attention_multiplier(config) == pytest.approx(0.1020621, abs=1e-7)

    def test_a_stated_multiplier_is_used_as_it_is(self) -> None:
        assert Llama3Config.calculate_attention_multiplier(hf_config(attention_multiplier=0.015625)) == 0.015625


class TestHeadDim:
    """`get_head_dim`, and its one value for attention, cache and rotary embedding."""

    def test_explicit_null_and_missing(self) -> None:
        assert Llama3Config.get_head_dim(hf_config(head_dim=16)) == 16
        assert Llama3Config.get_head_dim(hf_config(head_dim=None)) == 8
        assert Llama3Config.get_head_dim(hf_config()) == 8

    def test_the_rotary_embedding_has_the_head_size_of_attention(self) -> None:
        config = llama_config(hf_config(head_dim=16))
        assert (config.head_dim, config.rotary_embedding().head_dim, config.rotary_embedding().rot_dim) == (16, 16, 16)
        assert config.kv_params.head_dim == 16


class TestMaxSeqLen:
    """`calculate_max_seq_len`: a bound that is never exceeded and never lowered silently."""

    @pytest.mark.parametrize(("max_length", "expected"), [(None, 131072), (4096, 4096), (131072, 131072), (0, 0)])
    def test_values_up_to_the_bound(self, max_length: int | None, expected: int) -> None:
        config = hf_config(max_position_embeddings=131072)
        options = pipeline_config(model=model_config(max_length=max_length))
        assert Llama3Config.calculate_max_seq_len(options, config) == expected

    def test_more_than_the_bound_is_an_error_that_names_both(self) -> None:
        config = hf_config(max_position_embeddings=131072)
        options = pipeline_config(model=model_config(max_length=131073))
        with pytest.raises(ValueError, match="Llama 3") as error:
            Llama3Config.calculate_max_seq_len(options, config)
        assert "131073" in str(error.value)
        assert "max_position_embeddings" in str(error.value)
        assert isinstance(error.value.__cause__, ValueError)

    def test_a_negative_length_fails_when_the_options_are_made(self) -> None:
        with pytest.raises(ValueError, match="max_length"):
            model_config(max_length=-1)

    def test_another_model_config_overrides(self) -> None:
        options = pipeline_config(model=model_config(max_length=10))
        assert Llama3Config.calculate_max_seq_len(options, hf_config(), model_config(max_length=20)) == 20


class TestKVParams:
    """`construct_kv_params` and `get_kv_params`."""

    def test_every_field(self) -> None:
        cache = KVCacheConfig(kv_cache_page_size=16, enable_prefix_caching=False, kv_cache_format="bfloat16")
        options = pipeline_config(model=model_config(kv_cache=cache))
        params = Llama3Config.construct_kv_params(
            hf_config(head_dim=16), options, [DeviceRef.CPU()], cache, cache.cache_dtype
        )
        assert (params.dtype, params.n_kv_heads, params.head_dim, params.num_layers) == (DType.bfloat16, 2, 16, 2)
        assert (params.page_size, params.enable_prefix_caching, params.num_q_heads) == (16, False, 4)
        assert (list(params.devices), params.data_parallel_degree) == ([DeviceRef.CPU()], 1)
        assert (params.kv_connector, params.kv_connector_config, params.num_eagle_speculative_tokens) == (None, None, 0)

    def test_the_cache_is_float16_unless_told_otherwise(self) -> None:
        for encoding in ("float32", "bfloat16", "q4_k"):
            assert llama_config(model=model_config(quantization_encoding=encoding)).kv_params.dtype is DType.float16

    def test_a_draft_that_reads_hidden_states_needs_room_for_its_tokens(self) -> None:
        for method, room in (("eagle", 3), ("standalone", 0)):
            speculative = SpeculativeConfig(speculative_method=method, num_speculative_tokens=3)  # type: ignore[arg-type]
            params = llama_config(speculative=speculative).get_kv_params()
            assert params.num_eagle_speculative_tokens == room

    def test_heads_that_do_not_divide_are_an_error(self) -> None:
        devices = [DeviceSpec.cpu(n) for n in range(3)]
        with pytest.raises(ValueError, match="n_kv_heads"):
            llama_config(model=model_config(device_specs=devices))

    def test_get_kv_params_is_the_stored_object(self) -> None:
        config = llama_config()
        assert config.get_kv_params() is config.kv_params

    def test_get_max_seq_len_and_get_num_layers(self) -> None:
        assert llama_config().get_max_seq_len() == 64
        assert Llama3Config.get_num_layers(hf_config(num_hidden_layers=7)) == 7


def test_a_draft_takes_its_own_numbers_and_the_main_models_switches() -> None:
    main = model_config(use_subgraphs=False, quantization_encoding="q4_k", device_specs=[DeviceSpec.cpu(0)])
    draft = model_config(
        hf_config(hidden_size=16, num_attention_heads=2, num_key_value_heads=1),
        quantization_encoding="float32",
        device_specs=[DeviceSpec.cpu(1), DeviceSpec.cpu(2)],
        kv_cache=KVCacheConfig(kv_cache_page_size=32),
        max_length=20,
    )
    options = pipeline_config(model=main, draft_model=draft)
    config = Llama3Config.initialize(options, options.draft_model)
    assert (config.hidden_size, config.max_seq_len, config.dtype) == (16, 20, DType.float32)
    assert config.kv_params.page_size == 32
    assert config.use_subgraphs is False
    assert config.model_quantization_encoding is QuantizationEncoding.Q4_K
    assert config.devices == [DeviceRef.CPU(1)]


def test_adapters_and_shards_are_carried_and_shards_refused_where_they_would_run() -> None:
    lora = LoRAConfig(enable_lora=True, max_num_loras=2)
    config = llama_config(lora=lora)
    assert config.lora_config is lora
    config.rms_norm_eps = 1e-5
    assert config.decoder_spec().max_lora_rank == 0  # the plain program; another one runs rows with adapters
    two = [DeviceSpec.cpu(0), DeviceSpec.cpu(1)]
    replicas = llama_config(model=model_config(device_specs=two, data_parallel_degree=2))
    assert (replicas.data_parallel_degree, replicas.kv_params.n_kv_heads_per_device) == (2, 2)
    replicas.rms_norm_eps = 1e-5
    assert replicas.decoder_spec().kv_params.tensor_parallel_degree == 1
    sharded = llama_config(model=model_config(device_specs=two))
    assert sharded.kv_params.n_kv_heads_per_device == 1
    with pytest.raises(UnsupportedModelError, match="devices"):
        sharded.decoder_spec()


def test_other_quantizations_are_refused_by_name() -> None:
    section = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.raises(UnsupportedModelError, match="bitsandbytes"):
        llama_config(hf_config(quantization_config=section), model=model_config(hf_config(quantization_config=section)))


def test_text_values_equal_the_enumerations() -> None:
    assert ReturnLogits("last_token") is ReturnLogits.LAST_TOKEN == "last_token"
    assert ReturnHiddenStates("none") is ReturnHiddenStates.NONE == "none"
    config = llama_config()
    config.finalize(hf_config(), {"norm.weight": weight(1)}, "all")  # type: ignore[arg-type]
    assert config.return_logits is ReturnLogits.ALL


class TestGPTQSettings:
    """GPTQ's section is read and checked."""

    def read(self, **section: Any) -> Any:
        values = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, **section}
        config = hf_config(quantization_config=values, torch_dtype="float16")
        return llama_config(model=model_config(config, quantization_encoding="gptq")).quantization_config

    def test_fields(self) -> None:
        settings = self.read(desc_act=True)
        assert (settings.quant_method, settings.bits, settings.group_size) == ("gptq", 4, 128)
        assert (settings.desc_act, settings.sym) == (True, True)
        assert (self.read(sym=False, bits=8).sym, self.read(bits=8).bits) == (False, 8)

    @pytest.mark.parametrize("section", [{"bits": 3}, {"group_size": 0}, {"checkpoint_format": "marlin"}])
    def test_what_is_not_supported(self, section: dict[str, Any]) -> None:
        with pytest.raises(ValueError):
            self.read(**section)

    def test_the_section_must_be_there(self) -> None:
        with pytest.raises(ValueError, match="quant_method"):
            llama_config(model=model_config(hf_config(), quantization_encoding="gptq"))
