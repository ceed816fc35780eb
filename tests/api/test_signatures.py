"""The documented signatures, written down a second time and compared with what is there."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from puna.nn.decoder_spec import ReturnHiddenStates, ReturnLogits
from puna.pipelines.architectures import llama3
from puna.pipelines.context import TextContext
from puna.pipelines.lib import (
    ArchConfigWithKVCache,
    LogProbabilitiesMixin,
    ModelInputs,
    PipelineModelWithKVCache,
)

REQUIRED = inspect.Parameter.empty
POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
KEYWORD = inspect.Parameter.KEYWORD_ONLY

# name -> default, in the documented order
CONFIG_PARAMETERS: dict[str, object] = {
    "hidden_size": REQUIRED,
    "num_attention_heads": REQUIRED,
    "num_key_value_heads": REQUIRED,
    "num_hidden_layers": REQUIRED,
    "rope_theta": REQUIRED,
    "rope_scaling_params": REQUIRED,
    "max_seq_len": REQUIRED,
    "intermediate_size": REQUIRED,
    "interleaved_rope_weights": REQUIRED,
    "vocab_size": REQUIRED,
    "dtype": REQUIRED,
    "model_quantization_encoding": REQUIRED,
    "quantization_config": REQUIRED,
    "kv_params": REQUIRED,
    "return_logits": ReturnLogits.LAST_TOKEN,
    "norm_method": "rms_norm",
    "norm_dtype": None,
    "attention_bias": False,
    "rms_norm_eps": None,
    "tie_word_embeddings": False,
    "stacked_mlp": False,
    "stacked_qkv": False,
    "attention_multiplier": REQUIRED,
    "embedding_multiplier": REQUIRED,
    "residual_multiplier": REQUIRED,
    "devices": REQUIRED,
    "clip_qkv": REQUIRED,
    "quant_config": None,
    "lora_config": None,
    "longrope_scaling_params": None,
    "logits_scaling": 1.0,
    "return_hidden_states": ReturnHiddenStates.NONE,
    "use_subgraphs": True,
    "data_parallel_degree": 1,
}
INPUT_POSITIONALS: dict[str, object] = {
    "tokens": REQUIRED,
    "input_row_offsets": REQUIRED,
    "signal_buffers": REQUIRED,
    "return_n_logits": REQUIRED,
    "lora_grouped_offsets": None,
    "num_active_loras": None,
    "lora_end_idx": None,
    "batch_seq_len": None,
    "lora_ids_kv": None,
    "lora_grouped_offsets_kv": None,
    "data_parallel_splits": None,
}
INPUT_KEYWORDS: dict[str, object] = {
    "kv_cache_inputs": None,
    "lora_ids": None,
    "lora_ranks": None,
    "hidden_states": None,
}
MODEL_PARAMETERS: dict[str, object] = {
    "pipeline_config": REQUIRED,
    "session": REQUIRED,
    "devices": REQUIRED,
    "kv_cache_config": REQUIRED,
    "weights": REQUIRED,
    "adapter": None,
    "return_logits": ReturnLogits.LAST_TOKEN,
    "return_hidden_states": ReturnHiddenStates.NONE,
}
KV_PARAMETERS = ("huggingface_config", "pipeline_config", "devices", "kv_cache_config", "cache_dtype")


@dataclass(frozen=True)
class Method:
    """A documented method: whose it is, of which kind, with which parameters."""

    owner: str
    name: str
    kind: str
    parameters: dict[str, object]


METHODS = [
    Method("Llama3Config", "calculate_attention_multiplier", "static", {"huggingface_config": REQUIRED}),
    Method(
        "Llama3Config",
        "calculate_max_seq_len",
        "static",
        {"pipeline_config": REQUIRED, "huggingface_config": REQUIRED, "model_config": None},
    ),
    Method("Llama3Config", "construct_kv_params", "static", dict.fromkeys(KV_PARAMETERS, REQUIRED)),
    Method(
        "Llama3Config",
        "finalize",
        "instance",
        {
            "huggingface_config": REQUIRED,
            "state_dict": REQUIRED,
            "return_logits": REQUIRED,
            "return_hidden_states": ReturnHiddenStates.NONE,
            "norm_method": "rms_norm",
            "attention_bias": False,
        },
    ),
    Method("Llama3Config", "get_head_dim", "static", {"huggingface_config": REQUIRED}),
    Method("Llama3Config", "get_kv_params", "instance", {}),
    Method("Llama3Config", "get_max_seq_len", "instance", {}),
    Method("Llama3Config", "get_num_layers", "static", {"huggingface_config": REQUIRED}),
    Method("Llama3Config", "initialize", "class", {"pipeline_config": REQUIRED, "model_config": None}),
    Method(
        "Llama3Config",
        "initialize_from_config",
        "class",
        {"pipeline_config": REQUIRED, "huggingface_config": REQUIRED, "model_config": None},
    ),
    Method(
        "LlamaModelBase",
        "calculate_max_seq_len",
        "class",
        {"pipeline_config": REQUIRED, "huggingface_config": REQUIRED},
    ),
    Method("LlamaModelBase", "execute", "instance", {"model_inputs": REQUIRED}),
    Method("LlamaModelBase", "get_kv_params", "class", dict.fromkeys(KV_PARAMETERS, REQUIRED)),
    Method("LlamaModelBase", "load_model", "instance", {"session": REQUIRED}),
    Method(
        "LlamaModelBase",
        "prepare_initial_token_inputs",
        "instance",
        {"replica_batches": REQUIRED, "kv_cache_inputs": None, "return_n_logits": 1},
    ),
    Method(
        "LlamaModelBase",
        "prepare_next_token_inputs",
        "instance",
        {"next_tokens": REQUIRED, "prev_model_inputs": REQUIRED},
    ),
    Method(
        "LlamaModelBase",
        "compute_log_probabilities",
        "instance",
        dict.fromkeys(
            ("session", "model_inputs", "model_outputs", "next_tokens", "batch_top_n", "batch_echo"), REQUIRED
        ),
    ),
]


def _parameters(function: object) -> list[inspect.Parameter]:
    signature = inspect.signature(function)  # type: ignore[arg-type]
    return [p for p in signature.parameters.values() if p.name not in ("self", "cls")]


def _defaults(function: object) -> dict[str, object]:
    return {p.name: p.default for p in _parameters(function)}


def test_the_module_exports_the_four_classes_and_has_a_docstring() -> None:
    assert llama3.__all__ == ["Llama3Config", "Llama3Inputs", "Llama3Model", "LlamaModelBase"]
    assert llama3.__doc__ == "Llama 3 transformer architecture for text generation."


def test_the_configuration_has_34_keyword_only_parameters_in_order() -> None:
    assert len(CONFIG_PARAMETERS) == 34
    assert list(_defaults(llama3.Llama3Config).items()) == list(CONFIG_PARAMETERS.items())
    assert {p.kind for p in _parameters(llama3.Llama3Config)} == {KEYWORD}


def test_a_configuration_takes_nothing_by_position_and_no_required_value_may_be_missing() -> None:
    with pytest.raises(TypeError):
        llama3.Llama3Config(32)  # type: ignore[call-arg, misc]
    with pytest.raises(TypeError, match="num_attention_heads"):
        llama3.Llama3Config(hidden_size=32)  # type: ignore[call-arg]


def test_inputs_take_eleven_by_position_and_four_by_keyword() -> None:
    expected = list(INPUT_POSITIONALS.items()) + list(INPUT_KEYWORDS.items())
    assert list(_defaults(llama3.Llama3Inputs).items()) == expected
    kinds = [p.kind for p in _parameters(llama3.Llama3Inputs)]
    assert kinds == [POSITIONAL] * len(INPUT_POSITIONALS) + [KEYWORD] * len(INPUT_KEYWORDS)


@pytest.mark.parametrize("model", [llama3.LlamaModelBase, llama3.Llama3Model])
def test_models_take_eight_parameters(model: type[Any]) -> None:
    assert list(_defaults(model).items()) == list(MODEL_PARAMETERS.items())


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.owner}.{m.name}")
def test_methods_have_the_documented_kind_and_parameters(method: Method) -> None:
    owner = getattr(llama3, method.owner)
    raw = inspect.getattr_static(owner, method.name)
    kinds = {"static": staticmethod, "class": classmethod, "instance": object}
    assert isinstance(raw, kinds[method.kind])
    if method.kind == "instance":
        assert not isinstance(raw, (staticmethod, classmethod))
    assert list(_defaults(getattr(owner, method.name)).items()) == list(method.parameters.items())


def test_the_bases_are_the_documented_ones() -> None:
    assert ArchConfigWithKVCache in llama3.Llama3Config.__mro__
    assert ModelInputs in llama3.Llama3Inputs.__mro__
    assert llama3.Llama3Model.__bases__ == (llama3.LlamaModelBase,)
    order = llama3.LlamaModelBase.__mro__
    assert order.index(LogProbabilitiesMixin) < order.index(PipelineModelWithKVCache)
    assert PipelineModelWithKVCache[TextContext] in llama3.LlamaModelBase.__orig_bases__  # type: ignore[attr-defined]


def test_class_attributes_have_the_documented_values() -> None:
    assert llama3.Llama3Model.config_class is llama3.Llama3Config
    assert llama3.Llama3Model.norm_method == "rms_norm"
    assert llama3.LlamaModelBase.attention_bias is False
    assert not hasattr(llama3.LlamaModelBase, "norm_method")
    declared = llama3.LlamaModelBase.__annotations__
    assert {"model", "norm_method", "attention_bias", "state_dict"} <= set(declared)


def test_every_field_of_the_configuration_is_annotated() -> None:
    hints = get_type_hints(llama3.Llama3Config)
    assert set(CONFIG_PARAMETERS) <= set(hints)


def test_the_page_in_docs_names_everything() -> None:
    page = (Path(__file__).parents[2] / "docs" / "llama3.md").read_text(encoding="utf-8")
    names = {*CONFIG_PARAMETERS, *INPUT_POSITIONALS, *INPUT_KEYWORDS, *llama3.__all__, *(m.name for m in METHODS)}
    names |= {*MODEL_PARAMETERS, "buffers", "state_dict", "model", "config_class", "norm_method", "attention_bias"}
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", page)] == []


def test_every_documented_thing_has_a_docstring() -> None:
    for name in llama3.__all__:
        assert (inspect.getdoc(getattr(llama3, name)) or "").strip()
    for method in METHODS:
        assert (inspect.getdoc(getattr(getattr(llama3, method.owner), method.name)) or "").strip()
    assert inspect.getdoc(llama3.Llama3Inputs.buffers)
