"""Names of tensors: every name of a family's files has one meaning, and any other is an error."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from puna.errors import WeightsError
from puna.graph.weights import WeightsFormat, load_weights
from puna.pipelines.architectures import register_all_models
from puna.pipelines.architectures.llama3.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.lib import PIPELINE_REGISTRY
from support.checkpoints import GEMMAS, GGUF_FAMILIES, tiny_config, tiny_tensors, write_huggingface
from support.gguf_checkpoints import write_gguf

ONE = np.ones((1, 1), np.float32)


def adapted(directory: Path, names: list[str], config: Any = None) -> set[str]:
    path = directory / "model.safetensors"
    save_file(dict.fromkeys(names, ONE), path)
    weights = load_weights(path)
    return set(safetensors_state_dict(dict(weights.items()), huggingface_config=config))


# Directories of two families have Q, K and V in one matrix, their GGUF files have three; Gemma's adapter needs the
# configuration.
@pytest.mark.parametrize("family", sorted(set(GGUF_FAMILIES) - {"internlm2", "baichuan"} - set(GEMMAS)))
def test_both_sources_give_the_same_names_and_shapes(tmp_path: Path, family: str) -> None:
    register_all_models()
    config = tiny_config(family)
    tensors = tiny_tensors(config)
    adapters = PIPELINE_REGISTRY.architectures[config["architectures"][0]].weight_adapters
    directory = write_huggingface(tmp_path / "hf", config, tensors)
    path = write_gguf(tmp_path / "model.gguf", config, tensors)
    named = adapters[WeightsFormat.safetensors](dict(load_weights(directory).items()))
    from_gguf = adapters[WeightsFormat.gguf](dict(load_weights(path).items()))
    assert {n: w.shape for n, w in named.items()} == {n: w.shape for n, w in from_gguf.items()}
    assert len(named) == len(tensors)
    permuted = {".q_proj", ".k_proj"} if family not in ("qwen2", "phi3") else set()
    for name, weight in named.items():
        if not any(part in name for part in permuted):
            np.testing.assert_array_equal(weight.data, from_gguf[name].data)


@pytest.mark.parametrize("prefix", ["", "model.", "language_model.model."])
def test_prefixes(tmp_path: Path, prefix: str) -> None:
    names = ["embed_tokens.weight", "layers.0.mlp.up_proj.weight", "layers.11.self_attn.q_proj.bias", "norm.weight"]
    assert adapted(tmp_path, [prefix + name for name in names]) == set(names)


def test_saved_frequencies_are_dropped(tmp_path: Path) -> None:
    names = ["model.layers.0.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq", "model.norm.weight"]
    assert adapted(tmp_path, names) == {"norm.weight"}


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.mlp.experts.0.up_proj.weight",
        "model.layers.0.mlp.up_proj.weight_scale",
        "model.layers.x.mlp.up_proj.weight",
        "model.layers.0.mlp.up_proj.weight.extra",
        "xlayers.0.mlp.up_proj.weight",
        "blk.0.mlp.up_proj.weight",
        "vision.layers.0.mlp.up_proj.weight",
        "lm_head.bias",
        "",
    ],
)
def test_names_without_meaning(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError) as error:
        adapted(tmp_path, [name])
    assert error.value.tensor == name
    assert error.value.file == str(tmp_path / "model.safetensors")


def test_two_names_of_one_weight(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"is the same weight as"):
        adapted(tmp_path, ["model.norm.weight", "norm.weight"])
    with pytest.raises(WeightsError, match=r"is the same weight as"):
        adapted(tmp_path, ["layers.1.mlp.up_proj.weight", "layers.01.mlp.up_proj.weight"])


def test_layers_beyond_the_last(tmp_path: Path) -> None:
    name = "layers.2.mlp.up_proj.weight"
    assert adapted(tmp_path, [name], SimpleNamespace(num_hidden_layers=3)) == {name}
    with pytest.raises(WeightsError, match="beyond num_hidden_layers = 2"):
        adapted(tmp_path, [name], SimpleNamespace(num_hidden_layers=2))


def test_output_matrix_of_a_tied_model_is_dropped(tmp_path: Path) -> None:
    names = ["embed_tokens.weight", "lm_head.weight"]
    assert adapted(tmp_path, names, SimpleNamespace(tie_word_embeddings=True)) == {"embed_tokens.weight"}
    assert adapted(tmp_path, names, SimpleNamespace(tie_word_embeddings=False)) == set(names)


def test_gguf_names_match_whole_parts() -> None:
    def rename(name: str) -> Any:
        tensor = SimpleNamespace(data=lambda: SimpleNamespace(name=name, source=None))
        return list(gguf_state_dict({name: tensor}))  # type: ignore[dict-item]

    assert rename("blk.10.attn_output.weight") == ["layers.10.self_attn.o_proj.weight"]
    assert rename("output.weight") == ["lm_head.weight"]
    assert rename("rope_freqs.weight") == rename("blk.0.attn_rot_embd.weight") == []
    for name in ("blk.0.attn_output_norm.weight", "xoutput.weight", "blk.0.attn_q_norm.weight", "layers.0.attn_q.bias"):
        with pytest.raises(WeightsError, match=name):
            rename(name)
