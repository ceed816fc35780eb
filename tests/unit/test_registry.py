"""The registry of architectures, and what an architecture has to keep."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from puna.errors import InvalidRequestError, UnsupportedModelError
from puna.pipelines.architectures import register_all_models
from puna.pipelines.architectures.llama3 import Llama3Model
from puna.pipelines.architectures.llama3.arch import ARCHITECTURES
from puna.pipelines.lib import (
    PIPELINE_REGISTRY,
    PipelineModel,
    PipelineModelWithKVCache,
    PipelineRegistry,
    PipelineTask,
    upper_bounded_default,
)
from support.llama_config import hf_config, pipeline_config

(LLAMA,) = ARCHITECTURES


def test_it_finds_by_the_configurations_architectures_and_by_ggufs_name() -> None:
    registry = PipelineRegistry()
    registry.register(LLAMA)
    assert registry.find(SimpleNamespace(architectures=["LlamaForCausalLM"])) is LLAMA
    assert registry.find(SimpleNamespace(architectures=["Unknown", "LlamaForCausalLM"])) is LLAMA
    assert registry.find(SimpleNamespace(gguf_architecture="llama")) is LLAMA
    assert registry.retrieve(pipeline_config(hf_config())) is LLAMA


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (SimpleNamespace(architectures=["MambaForCausalLM"]), "MambaForCausalLM"),
        (SimpleNamespace(gguf_architecture="mamba"), "general.architecture = 'mamba'"),
        (SimpleNamespace(), "architectures"),
    ],
)
def test_an_unknown_one_is_refused_with_what_there_is(config: Any, key: str) -> None:
    registry = PipelineRegistry()
    registry.register(LLAMA)
    with pytest.raises(UnsupportedModelError, match=key) as error:
        registry.find(config)
    assert "LlamaForCausalLM" in str(error.value)


def test_an_empty_registry_says_why_it_is_empty() -> None:
    with pytest.raises(UnsupportedModelError, match="register_all_models"):
        PipelineRegistry().find(SimpleNamespace(architectures=["LlamaForCausalLM"]))


def test_a_name_is_registered_once_unless_overriding_is_asked_for() -> None:
    registry, other = PipelineRegistry(), replace(LLAMA, example_repo_ids=())
    registry.register(LLAMA)
    registry.register(LLAMA)
    with pytest.raises(ValueError, match="registered already"):
        registry.register(other)
    registry.register(other, allow_override=True)
    assert registry.architectures == {"LlamaForCausalLM": other}
    with pytest.raises(ValueError, match="belong to"):
        registry.register(replace(LLAMA, name="Another"))


def test_all_families_register_twice_without_harm() -> None:
    register_all_models()
    first = PIPELINE_REGISTRY.architectures
    register_all_models()
    assert PIPELINE_REGISTRY.architectures == first
    assert {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"} <= set(first)
    assert {"GraniteForCausalLM", "Phi3ForCausalLM", "OlmoForCausalLM"} <= set(first)
    for architecture in first.values():
        assert architecture.task is PipelineTask.TEXT_GENERATION
        assert issubclass(architecture.pipeline_model, PipelineModelWithKVCache)


@pytest.mark.parametrize(
    "method", ["execute", "prepare_initial_token_inputs", "prepare_next_token_inputs", "calculate_max_seq_len"]
)
def test_abstract_methods_are_enforced(method: str) -> None:
    assert method in PipelineModel.__abstractmethods__
    assert "get_kv_params" in PipelineModelWithKVCache.__abstractmethods__
    with pytest.raises(TypeError, match="abstract"):
        PipelineModel(None, None, [], None, None)  # type: ignore[abstract, arg-type]


def test_models_without_log_probabilities_say_so() -> None:
    with pytest.raises(NotImplementedError, match="object"):
        PipelineModel.compute_log_probabilities(object(), None, None, None, None, [], [])  # type: ignore[arg-type]


def test_a_subclass_may_compute_its_length_as_the_page_shows() -> None:
    class Mistral(Llama3Model):
        @classmethod
        def calculate_max_seq_len(cls, pipeline_config: Any, huggingface_config: Any) -> int:
            try:
                return upper_bounded_default(
                    upper_bound=huggingface_config.max_seq_len, default=pipeline_config.model.max_length
                )
            except ValueError as error:
                raise InvalidRequestError(f"{pipeline_config.model.max_length} is too long") from error

    options = pipeline_config()
    assert Mistral.calculate_max_seq_len(options, SimpleNamespace(max_seq_len=77)) == 77
    options.model.max_length = 78
    with pytest.raises(ValueError, match="78") as error:
        Mistral.calculate_max_seq_len(options, SimpleNamespace(max_seq_len=77))
    assert "upper bound of 77" in str(error.value.__cause__)
