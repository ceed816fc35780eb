"""`puna show`: numbers with what ignoring them would cost, and memory that is what a load takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from puna.engine import InferenceSession
from puna.entrypoints.cli import run
from puna.entrypoints.knob_costs import cost_of
from puna.entrypoints.model_header import open_header
from puna.nn.transformer import build_decoder_graph
from puna.pipelines.kv_cache import machine_memory
from support.checkpoints import BLOCK_256, FAMILIES, tiny_config, tiny_tensors, write_huggingface
from support.converted import write_model
from support.gguf_checkpoints import random_blocks, write_gguf
from support.tiny_decoder import KNOBS, tiny_spec

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "schemas" / "show.json").read_text())
SIZES = {**BLOCK_256, "vocab_size": 1024, "hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8}
LLAMA: frozenset[str] = frozenset()
# Family -> the numbers that set it apart from Llama, as the table lists them.
EXPECTED = {
    "llama": LLAMA,
    "granite": {
        "tie_word_embeddings", "attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling",
    },
    "qwen2": {"tie_word_embeddings", "attention_bias"},
    "gemma2": {
        "tie_word_embeddings", "embedding_multiplier", "sliding_window", "attention_softcap", "logits_softcap",
        "activation", "norm_places",
    },
    "cohere2": {
        "tie_word_embeddings", "interleaved_rope_weights", "logits_scaling", "norm_method", "sliding_window",
        "parallel_branches", "unrotated_layers",
    },
    "phi3": {"partial_rotary_factor", "sliding_window"},
    "stablelm": {"attention_bias", "norm_method", "partial_rotary_factor", "norm_has_bias"},
    "exaone4": {"norm_places", "qk_norm", "sliding_window", "unrotated_layers"},
}  # fmt: skip


@pytest.mark.parametrize("family", EXPECTED)
def test_what_sets_a_family_apart_is_listed(tmp_path: Path, family: str) -> None:
    header = open_header(str(write_model(tmp_path, family)))
    assert {knob.name for knob in header.knobs() if knob.cost is not None} == EXPECTED[family]
    assert len({knob.name for knob in header.knobs()}) == len(header.knobs())


def test_every_family_can_be_shown(tmp_path: Path) -> None:
    for family in FAMILIES:
        directory = tmp_path / family
        config = tiny_config(family)
        write_huggingface(directory, config, tiny_tensors(config))
        assert open_header(str(directory)).knobs()


@pytest.mark.parametrize("switch", sorted(KNOBS))
def test_every_switch_of_the_decoder_has_a_cost(switch: str) -> None:
    """A field that makes a decoder another one than Llama's is named by some cost."""
    names = {"interleaved_rope": "interleaved_rope_weights", "rope": "partial_rotary_factor", "num_layers": "",
             "norm_has_weight": "norm_method", "sliding_window_layers": "sliding_window"}  # fmt: skip
    layout = ("stacked", "kv_dtype", "return", "hidden_state", "num_", "head_dim")
    spec = tiny_spec(**KNOBS[switch])
    for field in KNOBS[switch]:
        if field.startswith(layout) or (field == "norm_places" and spec.parallel_branches):
            continue
        name = names.get(field, field)
        if field == "rope" and spec.rope.scaling is not None:
            name = "rope_scaling_params"
        assert cost_of(name, spec) is not None, field
        assert cost_of(name, tiny_spec()) is None


def test_the_sentence_and_the_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_model(tmp_path / "hf", "granite", attention_multiplier=0.0078)
    assert run(["show", str(directory), "--no-probe", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    jsonschema.validate(report, SCHEMA)
    (knob,) = [knob for knob in report["knobs"] if knob["name"] == "attention_multiplier"]
    assert knob["source"] == "config.json" and knob["value"] == 0.0078
    assert knob["cost"] == "with 1/sqrt(D) = 0.3162 scores would be 40.5 times as large"
    assert run(["show", str(directory), "--no-probe"]) == 0
    assert "attention_multiplier 0.0078" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["F32", "BF16", "F16", "Q8_0", "Q4_0", "Q4_K", "Q6_K", "IQ4_XS"])
def test_memory_is_what_a_load_takes(tmp_path: Path, encoding: str) -> None:
    """Within 5 %, and activations exactly."""
    config: dict[str, Any] = tiny_config("llama", **SIZES)
    tensors, blocks = tiny_tensors(config), None
    if encoding not in ("F32", "BF16", "F16"):
        tensors, blocks = random_blocks(tensors, encoding)
    path = write_gguf(tmp_path / "model.gguf", config, tensors, encoding=encoding, blocks=blocks)
    header = open_header(str(path))
    spec, told = header.arch_config.decoder_spec(), header.memory(512, machine_memory())
    report = InferenceSession().load(build_decoder_graph(spec, header.state_dict), header.state_dict).report
    assert told.weights == pytest.approx(report.packed_bytes, rel=0.05)
    assert told.activations == report.activation_bytes(512, 1) + 4 * spec.vocab_size
    assert told.kv_cache_per_token == 2 * 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim
