"""Configuration records: defaults, ranges, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.driver import DeviceSpec
from puna.dtype import DType
from puna.errors import InvalidRequestError, ModelNotFoundError, WeightsError
from puna.nn.kv_cache import KVConnectorConfig
from puna.pipelines.lib import (
    KVCacheConfig,
    LoRAConfig,
    MAXModelConfig,
    PipelineConfig,
    PipelineRuntimeConfig,
    PipelineTask,
    ProfilingConfig,
    SamplingConfig,
    SpeculativeConfig,
    parse_devices,
    upper_bounded_default,
)
from puna.pipelines.lib.generation_config import generation_defaults
from support.llama_config import model_config, pipeline_config


class TestKVCacheConfig:
    def test_defaults(self) -> None:
        made = KVCacheConfig()
        assert (made.kv_cache_page_size, made.enable_prefix_caching, made.device_memory_utilization) == (128, True, 0.9)
        assert (made.kv_connector, made.kv_connector_config, made.kv_cache_format) == (None, None, None)

    @pytest.mark.parametrize(
        ("name", "dtype"),
        [
            (None, DType.float16),
            ("auto", DType.float16),
            ("float16", DType.float16),
            ("float32", DType.float32),
            ("bfloat16", DType.bfloat16),
            ("int8", DType.int8),
        ],
    )
    def test_formats(self, name: str | None, dtype: DType) -> None:
        assert KVCacheConfig(kv_cache_format=name).cache_dtype is dtype

    @pytest.mark.parametrize(
        ("bad", "param"),
        [
            ({"kv_cache_format": "float8_e4m3fn"}, "kv_cache_format"),
            ({"kv_cache_format": "int4"}, "kv_cache_format"),
            ({"kv_cache_page_size": 0}, "kv_cache_page_size"),
            ({"device_memory_utilization": 0}, "device_memory_utilization"),
            ({"device_memory_utilization": 1.5}, "device_memory_utilization"),
            ({"kv_connector": "tiered"}, "kv_connector"),
            ({"kv_connector": "attic"}, "kv_connector"),
            ({"kv_connector_config": KVConnectorConfig()}, "kv_connector_config"),
        ],
        ids=str,
    )
    def test_refusals(self, bad: dict[str, Any], param: str) -> None:
        with pytest.raises(InvalidRequestError) as error:
            KVCacheConfig(**bad)
        assert error.value.param == param

    def test_a_null_connector_is_none(self) -> None:
        assert KVCacheConfig(kv_connector="null").kv_connector == "null"

    def test_formats_of_accelerators_say_so(self) -> None:
        with pytest.raises(InvalidRequestError, match="needs an accelerator"):
            KVCacheConfig(kv_cache_format="float8_e4m3fn")


class TestRuntimeConfig:
    def test_defaults(self) -> None:
        made = PipelineRuntimeConfig()
        assert (made.max_batch_size, made.max_batch_input_tokens, made.max_batch_total_tokens) == (None, 8192, None)
        assert (made.enable_chunked_prefill, made.enable_in_flight_batching) == (True, False)
        assert (made.enable_overlap_scheduler, made.device_graph_capture) == (False, False)
        assert (made.kvcache_ce_watermark, made.ce_delay_ms, made.pipeline_role) == (0.95, 0.0, "prefill_and_decode")
        assert (made.max_num_steps, made.num_steps) == (-1, 1)

    def test_the_batch_size_of_a_cpu_is_one_and_never_above_the_token_budget(self) -> None:
        made = PipelineRuntimeConfig()
        made.resolve()
        assert made.max_batch_size == 1
        with pytest.raises(InvalidRequestError, match="max_batch_input_tokens"):
            PipelineRuntimeConfig(max_batch_size=9, max_batch_input_tokens=8)
        made = PipelineRuntimeConfig(max_batch_size=8, max_batch_input_tokens=8)
        made.resolve()
        assert made.max_batch_size == 8

    @pytest.mark.parametrize(
        "bad",
        [
            {"max_batch_size": 0},
            {"max_batch_input_tokens": 0},
            {"max_batch_total_tokens": 0},
            {"max_queue_size_tg": 0},
            {"min_batch_size_tg": -1},
            {"ce_delay_ms": -1.0},
            {"kvcache_ce_watermark": 1.5},
            {"max_num_steps": 0},
            {"pipeline_role": "bystander"},
            {"enable_overlap_scheduler": True},
            {"device_graph_capture": True},
        ],
        ids=str,
    )
    def test_refused_when_made(self, bad: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequestError) as error:
            PipelineRuntimeConfig(**bad)
        assert error.value.param in bad

    @pytest.mark.parametrize(
        "carried",
        [
            {"pipeline_role": "decode_only"},
            {"tool_parser": "llama"},
            {"reasoning_parser": "qwen"},
            {"enable_in_flight_batching": True},
            {"ce_delay_ms": 2.0},
            {"force": True},
            {"prefer_module_v3": True},
            {"custom_architectures": ["mine"]},
        ],
        ids=str,
    )
    def test_carried_but_refused_when_resolved(self, carried: dict[str, Any]) -> None:
        made = PipelineRuntimeConfig(**carried)
        with pytest.raises(InvalidRequestError) as error:
            made.resolve()
        assert error.value.param in carried

    def test_a_total_below_the_models_length_is_an_error(self) -> None:
        with pytest.raises(InvalidRequestError, match="max_batch_total_tokens"):
            PipelineRuntimeConfig(max_batch_total_tokens=63).resolve(64)


class TestSamplingConfig:
    def test_defaults(self) -> None:
        made = SamplingConfig()
        assert (made.in_dtype, made.out_dtype) == (DType.float32, DType.float32)
        made.require_implemented()

    def test_only_float32(self) -> None:
        with pytest.raises(InvalidRequestError, match="in_dtype"):
            SamplingConfig(in_dtype=DType.float16)

    def test_abilities_that_every_request_has(self) -> None:
        SamplingConfig(enable_penalties=True, enable_min_tokens=True).require_implemented()

    @pytest.mark.parametrize("name", ["enable_structured_output", "enable_variable_logits"])
    def test_abilities_that_are_not_there(self, name: str) -> None:
        with pytest.raises(InvalidRequestError, match=name):
            SamplingConfig(**{name: True}).require_implemented()


class TestLoRAConfig:
    def test_defaults(self) -> None:
        made = LoRAConfig()
        assert (made.enable_lora, made.lora_paths, made.max_lora_rank, made.max_num_loras) == (False, [], 16, 1)

    def test_paths_may_have_names(self) -> None:
        assert LoRAConfig.split("poet=/a/b=c") == ("poet", "/a/b=c")
        assert LoRAConfig.split("/a/b") == ("/a/b", "/a/b")

    @pytest.mark.parametrize(
        "bad",
        [
            *({"max_lora_rank": 0}, {"max_num_loras": 0}, {"lora_memory": 0}),
            *({"lora_paths": ["=x"]}, {"lora_paths": ["a=x", "a=y"]}),
        ],
        ids=str,
    )
    def test_refusals(self, bad: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequestError) as error:
            LoRAConfig(**bad)
        assert error.value.param in bad


class TestSpeculativeConfig:
    def test_defaults_depend_on_the_method(self) -> None:
        eagle = SpeculativeConfig(speculative_method="eagle")
        assert (eagle.num_speculative_tokens, eagle.rejection_sampling_strategy) == (2, "typical-acceptance")
        assert eagle.reads_hidden_states
        alone = SpeculativeConfig(speculative_method="standalone")
        assert (alone.rejection_sampling_strategy, alone.reads_hidden_states) == ("residual", False)

    @pytest.mark.parametrize(
        "bad",
        [
            {"speculative_method": "psychic"},
            {"speculative_method": "eagle", "num_speculative_tokens": 0},
            {"speculative_method": "eagle", "rejection_sampling_strategy": "hope"},
            {"speculative_method": "eagle", "synthetic_acceptance_rate": 1.5},
        ],
        ids=str,
    )
    def test_refusals(self, bad: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequestError):
            SpeculativeConfig(**bad)


class TestModelConfig:
    def test_defaults(self) -> None:
        made = MAXModelConfig()
        assert (made.model_path, made.served_model_name, made.weight_path, made.max_length) == ("", None, [], None)
        assert (made.quantization_encoding, made.rope_type, made.subfolder) == (None, None, None)
        assert (made.huggingface_model_revision, made.huggingface_weight_revision) == ("main", "main")
        assert (made.use_subgraphs, made.data_parallel_degree, made.enable_echo) == (True, 1, False)
        assert (made.trust_remote_code, made.force_download, made.pool_embeddings) == (False, False, True)
        assert (made.chat_template, made.sliding_window) == (None, None)
        assert made.device_specs == [DeviceSpec.cpu(0)]

    @pytest.mark.parametrize(
        "bad",
        [
            {"max_length": -1},
            {"data_parallel_degree": 0},
            {"sliding_window": 0},
            {"rope_type": "spiral"},
            {"trust_remote_code": True},
            {"force_download": True},
            {"pool_embeddings": False},
            {"huggingface_weight_revision": "dev"},
            {"devices": "gpu"},
            {"devices": "gpu:all"},
            {"devices": "tpu"},
            {"devices": "cpu:x"},
            {"devices": ["cpu:0", "cpu:0"]},
            {"devices": "cpu", "device_specs": [DeviceSpec.cpu()]},
            {"quantization_encoding": "q9_z"},
        ],
        ids=str,
    )
    def test_refusals(self, bad: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequestError) as error:
            MAXModelConfig(**bad)
        assert error.value.param in bad

    def test_an_accelerator_is_refused_by_name(self) -> None:
        with pytest.raises(InvalidRequestError, match="gpu:1"):
            MAXModelConfig(device_specs=[DeviceSpec.accelerator(1)])

    def test_devices(self) -> None:
        assert parse_devices(None) == parse_devices("cpu") == [DeviceSpec.cpu(0)]
        assert parse_devices("cpu:0,2") == [DeviceSpec.cpu(0), DeviceSpec.cpu(2)]
        assert parse_devices(["cpu:1", "cpu"]) == [DeviceSpec.cpu(1), DeviceSpec.cpu(0)]

    def test_names(self) -> None:
        assert MAXModelConfig(model_path="a/b").model_name == "a/b"
        assert MAXModelConfig(model_path="a/b", served_model_name="c").model_name == "c"

    def test_a_missing_weight_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match=r"gone\.gguf"):
            _ = MAXModelConfig(weight_path=[tmp_path / "gone.gguf"]).weight_files

    def test_templates(self, tmp_path: Path) -> None:
        plain, wrapped, broken = (tmp_path / name for name in ("a.jinja", "b.json", "c.json"))
        plain.write_text("{{ messages }}")
        wrapped.write_text(json.dumps({"chat_template": "{{ x }}"}))
        broken.write_text(json.dumps({"template": "{{ x }}"}))
        assert MAXModelConfig().read_chat_template() is None
        assert MAXModelConfig(chat_template=plain).read_chat_template() == "{{ messages }}"
        assert MAXModelConfig(chat_template=wrapped).read_chat_template() == "{{ x }}"
        with pytest.raises(InvalidRequestError, match="chat_template"):
            MAXModelConfig(chat_template=broken).read_chat_template()
        with pytest.raises(InvalidRequestError, match="chat_template: there is no file"):
            MAXModelConfig(chat_template=tmp_path / "d").read_chat_template()
        plain.write_bytes(b"ab\xff")
        with pytest.raises(InvalidRequestError, match=r"a\.jinja is not UTF-8 \(byte 2\)"):
            MAXModelConfig(chat_template=plain).read_chat_template()

    def test_an_unresolved_encoding_is_an_error(self) -> None:
        with pytest.raises(InvalidRequestError, match="quantization_encoding"):
            _ = MAXModelConfig().resolved_encoding


class TestPipelineConfig:
    def test_adapters_are_none_until_enabled(self) -> None:
        assert pipeline_config(lora=LoRAConfig(lora_paths=["/a"])).lora is None

    def test_adapters_and_prefix_caching_go_together(self) -> None:
        lora = LoRAConfig(enable_lora=True)
        made = pipeline_config(model=model_config(kv_cache=KVCacheConfig(enable_prefix_caching=True)), lora=lora)
        assert made.lora is lora

    def test_adapters_run_on_one_replica(self) -> None:
        for parallel in ({"devices": "cpu:0,1"}, {"devices": "cpu:0,1", "data_parallel_degree": 2}):
            with pytest.raises(ValueError, match="data_parallel_degree must be 1"):
                pipeline_config(model=model_config(**parallel), lora=LoRAConfig(enable_lora=True))

    def test_a_draft_switches_penalties_off_and_allows_one_step(self) -> None:
        sampling = SamplingConfig(enable_penalties=True)
        assert pipeline_config(draft_model=model_config(), sampling=sampling).sampling.enable_penalties is False
        runtime = PipelineRuntimeConfig(defer_resolve=True, max_num_steps=2)
        with pytest.raises(ValueError, match="max_num_steps"):
            PipelineConfig(model=model_config(), draft_model=model_config(), runtime=runtime)

    @pytest.mark.parametrize(
        ("carried", "param"),
        [
            ({"draft_model": MAXModelConfig()}, "draft_model"),
            ({"speculative": SpeculativeConfig(speculative_method="mtp")}, "speculative_method"),
            ({"model": {"devices": "cpu:0,1"}}, "devices"),
            ({"model": {"devices": "cpu:0,1,2", "data_parallel_degree": 2}}, "devices"),
            ({"sampling": SamplingConfig(enable_variable_logits=True)}, "enable_variable_logits"),
            ({"task": "embeddings_generation"}, "task"),
        ],
        ids=str,
    )
    def test_carried_but_refused_when_resolved(self, carried: dict[str, Any], param: str) -> None:
        options = dict(carried)
        if "model" in options:
            options["model"] = model_config(**options["model"])
        made = pipeline_config(**options)
        with pytest.raises(InvalidRequestError) as error:
            made.resolve()
        assert error.value.param == param

    def test_accelerator_switches_are_refused(self) -> None:
        with pytest.raises(InvalidRequestError, match="debug_verify_replay"):
            pipeline_config(debug_verify_replay=True)
        with pytest.raises(InvalidRequestError, match="gpu_profiling"):
            ProfilingConfig(gpu_profiling="detailed")

    def test_echo_needs_all_logits(self) -> None:
        assert pipeline_config().return_logits == "last_token"
        assert pipeline_config(model=model_config(enable_echo=True)).return_logits == "all"

    def test_tasks_are_checked(self) -> None:
        assert pipeline_config().task is PipelineTask.TEXT_GENERATION
        with pytest.raises(ValueError):
            pipeline_config(task="telepathy")

    def test_sampling_defaults_come_from_options_before_the_checkpoint(self, tmp_path: Path) -> None:
        (tmp_path / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 2]}')
        model = model_config(model_path=str(tmp_path))
        runtime = PipelineRuntimeConfig(defer_resolve=True, temperature=0.3)
        stated = PipelineConfig(model=model, runtime=runtime).sampling_params_defaults.stated()
        assert stated == {"temperature": 0.3, "top_p": 0.9, "stop_token_ids": (1, 2)}


class TestGenerationDefaults:
    def read(self, directory: Path, text: str) -> dict[str, Any]:
        path = directory / "generation_config.json"
        path.write_text(text)
        return generation_defaults(path).stated()

    def test_only_stated_values_count(self, tmp_path: Path) -> None:
        assert self.read(tmp_path, '{"_from_model_config": true, "top_k": null}') == {}
        assert self.read(tmp_path, '{"eos_token_id": 2, "top_k": 5}') == {"stop_token_ids": (2,), "top_k": 5}

    def test_no_sampling_means_greedy(self, tmp_path: Path) -> None:
        assert self.read(tmp_path, '{"do_sample": false, "temperature": 0.6}') == {"temperature": 0.0, "top_k": 1}

    @pytest.mark.parametrize(
        "text",
        ["[]", "{", '{"top_k": 1.5}', '{"temperature": "1"}', '{"do_sample": 1}', '{"eos_token_id": [-1]}'],
    )
    def test_what_is_wrong_names_the_file(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(WeightsError, match=r"generation_config\.json"):
            self.read(tmp_path, text)


def test_upper_bounded_default() -> None:
    assert upper_bounded_default(upper_bound=10, default=None) == 10
    assert upper_bounded_default(upper_bound=10, default=10) == 10
    with pytest.raises(ValueError, match="11 is above the upper bound of 10"):
        upper_bounded_default(upper_bound=10, default=11)


def test_model_inputs_update_only_known_and_stated_fields() -> None:
    from puna.driver import Buffer
    from puna.pipelines.lib import ModelInputs

    inputs = ModelInputs(hidden_states=Buffer.from_numpy(np.zeros(1, np.float32)))
    kept = inputs.hidden_states
    ranks = Buffer.from_numpy(np.zeros(1, np.uint32))
    inputs.update(hidden_states=None, lora_ranks=ranks, unknown=1)
    assert inputs.hidden_states is kept
    assert inputs.lora_ranks is ranks
    assert not hasattr(inputs, "unknown")
    with pytest.raises(NotImplementedError, match="ModelInputs"):
        _ = inputs.buffers
