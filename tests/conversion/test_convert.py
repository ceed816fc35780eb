"""From directories to GGUF files: every family, what is read back, and what is refused."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from puna.conversion import EncodedTensor, float_tensors, open_checkpoint, write_gguf
from puna.errors import InvalidRequestError, UnsupportedModelError, WeightsError
from puna.graph.weights import load_weights
from puna.pipelines.lib import MAXModelConfig
from support.checkpoints import FAMILIES, LENGTH, tiny_config, tiny_tensors
from support.converted import VOCABULARY, convert, write_model
from support.family_model import all_logits, load_family, random_prompt
from support.gguf_checkpoints import write_gguf as write_other_gguf
from support.random_blocks import random_weight

NOT_IN_GGUF = ("helium", "ministral")
CONVERTIBLE = [family for family in FAMILIES if family not in NOT_IN_GGUF]
# Families whose files have rows of Q and K in pairs: the sums over a head have another order there.
PAIRED = ("llama", "mistral", "granite", "olmo", "smollm3", "internlm", "internlm2", "internlm3", "minicpm", "baichuan")
PROMPTS = [random_prompt(VOCABULARY, length, seed=length) for length in (61, 5)]


@pytest.mark.parametrize("family", CONVERTIBLE)
def test_the_file_computes_what_the_directory_computes(tmp_path: Path, family: str) -> None:
    directory = write_model(tmp_path / "hf", family)
    convert(directory, tmp_path / "model.gguf")
    expected = all_logits(load_family(directory), PROMPTS)
    got = all_logits(load_family(tmp_path / "model.gguf"), PROMPTS)
    for mine, theirs in zip(got, expected, strict=True):
        if family in PAIRED:
            assert np.abs(mine - theirs).max() <= 1e-5 * np.abs(theirs).max()
        else:
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("family", "rope"),
    [("llama", "llama3"), ("llama", "yarn"), ("llama", "longrope"), ("qwen3", "linear"), ("phi3", "longrope")],
)
def test_scaled_rotary_embedding(tmp_path: Path, family: str, rope: str) -> None:
    directory = write_model(tmp_path / "hf", family, rope)
    convert(directory, tmp_path / "model.gguf")
    expected = all_logits(load_family(directory), PROMPTS)
    for mine, theirs in zip(all_logits(load_family(tmp_path / "model.gguf"), PROMPTS), expected, strict=True):
        assert np.abs(mine - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "internlm2", "baichuan", "granite", "cohere2", "olmo2"])
def test_tensors_and_keys_are_those_of_an_independent_writer(tmp_path: Path, family: str) -> None:
    """The package `gguf` reads the file; names, shapes, rows and keys are compared with the tests' own writer."""
    directory = write_model(tmp_path / "hf", family)
    convert(directory, tmp_path / "model.gguf")
    config = json.loads((directory / "config.json").read_text())
    other = write_other_gguf(tmp_path / "other.gguf", config, tiny_tensors(config))
    mine, theirs = gguf.GGUFReader(tmp_path / "model.gguf"), gguf.GGUFReader(other)
    tensors = {tensor.name: tensor.data for tensor in mine.tensors}
    assert sorted(tensors) == sorted(tensor.name for tensor in theirs.tensors)
    for tensor in theirs.tensors:
        np.testing.assert_array_equal(tensors[tensor.name], tensor.data)
    for key, field in theirs.fields.items():
        if not key.startswith(("GGUF.", "tokenizer.", "general.")):
            assert mine.fields[key].contents() == pytest.approx(field.contents(), rel=1e-6), key


@pytest.mark.parametrize("encoding", ["F16", "BF16"])
def test_matrices_are_rounded_and_vectors_are_not(tmp_path: Path, encoding: str) -> None:
    directory = write_model(tmp_path / "hf", "qwen3")
    convert(directory, tmp_path / "model.gguf", encoding)
    weights = load_weights(tmp_path / "model.gguf")
    values = tiny_tensors(tiny_config("qwen3", vocab_size=VOCABULARY))
    matrix = weights["blk.0.attn_q.weight"].data()
    assert matrix.format == encoding
    kind = matrix.data.dtype
    expected = values["model.layers.0.self_attn.q_proj.weight"].astype(kind)
    np.testing.assert_array_equal(matrix.data, expected)
    norm = weights["blk.0.attn_norm.weight"].data()
    assert norm.format == "F32"
    np.testing.assert_array_equal(norm.data, values["model.layers.0.input_layernorm.weight"])


def test_bfloat16_stays_as_it_is(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "hf", "qwen2", dtype="bfloat16")
    convert(directory, tmp_path / "model.gguf", "BF16")
    expected = all_logits(load_family(directory, precision="auto"), PROMPTS)
    got = all_logits(load_family(tmp_path / "model.gguf", precision="auto"), PROMPTS)
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("llama", "dynamic", {}, "rope_type"),
    ("qwen2", "none", {"use_sliding_window": True}, "sliding_window"),
    ("gemma2", "none", {"query_pre_attn_scalar": 25}, "attention_multiplier"),
    ("exaone4", "none", {"sliding_window_pattern": 2}, "sliding_window_layers"),
    ("helium", "none", {}, "architectures"),
    ("ministral", "none", {}, "sliding_window_layers"),
    ("llama", "none", {"quantization_config": GPTQ}, "quantization_config"),
]


@pytest.mark.parametrize(("family", "rope", "changes", "key"), REFUSED)
def test_what_gguf_cannot_say_is_refused_by_name(
    tmp_path: Path, family: str, rope: str, changes: dict[str, Any], key: str
) -> None:
    directory = write_model(tmp_path / "hf", family, rope, **changes)
    with pytest.raises(UnsupportedModelError) as caught:
        open_checkpoint(directory)
    assert caught.value.key == key


def test_a_value_beyond_float16_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "hf", "llama")
    path = directory / "model.safetensors"
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e5
    save_file(tensors, path)
    with pytest.raises(WeightsError, match=r"up_proj.*beyond float16"):
        convert(directory, tmp_path / "model.gguf", "F16")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["hf"]
    convert(directory, tmp_path / "model.gguf", "BF16")


def test_a_gguf_file_is_copied_and_a_quantized_one_is_not_made_float(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "hf", "llama")
    convert(directory, tmp_path / "first.gguf")
    convert(tmp_path / "first.gguf", tmp_path / "second.gguf")
    assert (tmp_path / "first.gguf").read_bytes() == (tmp_path / "second.gguf").read_bytes()
    block = random_weight(np.random.default_rng(0), "blk.0.attn_q.weight", "Q8_0", 32, 64)
    tensor = EncodedTensor("blk.0.attn_q.weight", (32, 64), "Q8_0", lambda: [block.data])
    write_gguf(tmp_path / "q.gguf", {"general.architecture": "llama"}, [tensor])
    stored = load_weights(tmp_path / "q.gguf")["blk.0.attn_q.weight"].data()
    np.testing.assert_array_equal(stored.data, block.data)
    from puna.conversion.tensors import sources_of_gguf

    with pytest.raises(InvalidRequestError, match="Q8_0"):
        float_tensors(sources_of_gguf(load_weights(tmp_path / "q.gguf")), "F16")


def test_the_writer_keeps_types_and_is_atomic(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "a.u32": 5,
        "a.i32": -5,
        "a.u64": 1 << 40,
        "a.f32": 0.5,
        "a.bool": True,
        "a.text": "x",
        "a.texts": ["a", "ü"],
        "a.numbers": np.array([1, -2], np.int32),
        "a.none": [],
    }

    def fail() -> Any:
        yield np.zeros(3, np.float32)
        raise RuntimeError("no more")

    good = EncodedTensor("t", (2, 3), "F32", lambda: [np.arange(3, dtype=np.float32), np.ones(3, np.float32)])
    with pytest.raises(RuntimeError):
        write_gguf(path, metadata, [EncodedTensor("t", (2, 3), "F32", fail)])
    assert not list(tmp_path.iterdir())
    seen: list[tuple[str, int, int]] = []
    write_gguf(path, metadata, [good], progress=lambda *step: seen.append(step))
    assert seen == [("t", 0, 24), ("", 24, 24)]
    weights = load_weights(path)
    stored: Any = weights.metadata  # type: ignore[attr-defined]
    for key, value in metadata.items():
        if key == "a.none":
            assert key not in stored
        elif key == "a.texts":
            assert list(stored[key]) == value
        else:
            np.testing.assert_array_equal(stored[key], value)
    np.testing.assert_array_equal(weights["t"].data().data, [[0, 1, 2], [1, 1, 1]])
    with pytest.raises(InvalidRequestError, match="exists"):
        write_gguf(path, metadata, [good])
    write_gguf(path, metadata, [good], overwrite=True)
    with pytest.raises(InvalidRequestError, match="there is no directory"):
        write_gguf(tmp_path / "no" / "x.gguf", metadata, [good])


@pytest.mark.slow
def test_memory_is_about_a_tensor(tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "head_dim": 64}
    directory = write_model(tmp_path / "hf", "llama", num_attention_heads=8, num_key_value_heads=8, **sizes)
    tracemalloc.start()
    convert(directory, tmp_path / "model.gguf", "BF16")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "model.gguf").stat().st_size > 40e6
    assert peak < 20e6


def test_context_length_and_template_come_along(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "hf", "llama")
    (directory / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20, "do_sample": True}))
    metadata = open_checkpoint(directory).metadata
    assert metadata["llama.context_length"] == LENGTH
    assert metadata["tokenizer.chat_template"] == "{{ messages[0].content }}"
    assert (metadata["general.sampling.temp"], metadata["general.sampling.top_k"]) == (0.6, 20)
    assert metadata["general.name"] == "hf"
    convert(directory, tmp_path / "model.gguf")
    stated = MAXModelConfig(model_path=str(tmp_path / "model.gguf")).sampling_params_defaults.stated()
    assert stated == {"temperature": 0.6, "top_k": 20}


def test_a_sampling_key_of_the_wrong_type_is_named(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_model(tmp_path / "hf", "llama"))
    metadata = {**checkpoint.metadata, "general.sampling.temp": "warm"}
    write_gguf(tmp_path / "model.gguf", metadata, float_tensors(checkpoint.tensors, "F32"))
    with pytest.raises(WeightsError, match=r"sampling\.temp"):
        _ = MAXModelConfig(model_path=str(tmp_path / "model.gguf")).sampling_params_defaults
