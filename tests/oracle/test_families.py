"""Logits of every family against transformers, float32 throughout, past original contexts and sliding windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from support.checkpoints import (
    BLOCK_32,
    BLOCK_256,
    FAMILIES,
    GGUF_FAMILIES,
    LENGTH,
    ORIGINAL_LENGTH,
    REARRANGED,
    ROPE_CASES,
    WINDOW,
    Tensors,
    rearranged,
    tiny_config,
    tiny_tensors,
    write_huggingface,
)
from support.family_model import all_logits, load_family, random_prompt
from support.gguf_checkpoints import dequantized, random_blocks, write_gguf

pytestmark = pytest.mark.oracle

LENGTHS = (61, 5, WINDOW, WINDOW + 1, ORIGINAL_LENGTH, ORIGINAL_LENGTH + 1)
TOLERANCE = 1e-4
GGUF_CASES = [(family, rope) for family, rope in ROPE_CASES if rope != "dynamic" and family in GGUF_FAMILIES]
EXECUTORS = ("reference", "native")


def write_reference(directory: Path, config: dict[str, Any], tensors: Tensors, dtype: str = "float32") -> Path:
    """The directory that transformers reads: the same one, but for families that it does not have."""
    if config["model_type"] in REARRANGED:
        config, tensors = rearranged(config, tensors)
        return write_huggingface(directory / "rearranged", config, tensors, dtype=dtype)
    return directory


def transformers_logits(directory: Path, prompts: list[list[int]]) -> list[np.ndarray[Any, Any]]:
    """Logits `[T, V]` of each prompt, each run alone, the longest last: dynamic frequencies are kept from then on."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    found: dict[int, np.ndarray[Any, Any]] = {}
    for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index])):
        with torch.no_grad():
            found[index] = model(torch.tensor([prompts[index]])).logits[0].numpy()
    return [found[index] for index in range(len(prompts))]


def assert_close(got: list[np.ndarray[Any, Any]], expected: list[np.ndarray[Any, Any]]) -> None:
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.shape == theirs.shape
        difference, largest = np.abs(mine - theirs).max(), np.abs(theirs).max()
        assert difference <= TOLERANCE * largest, f"{difference:.2e} of {largest:.2e}"


def prompts_for(config: dict[str, Any]) -> list[list[int]]:
    return [random_prompt(config["vocab_size"], length, seed=length) for length in LENGTHS]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(("family", "rope"), ROPE_CASES)
def test_logits_are_those_of_transformers(tmp_path: Path, family: str, rope: str, executor: str) -> None:
    config = tiny_config(family, rope)
    write_huggingface(tmp_path, config, tiny_tensors(config))
    prompts = prompts_for(config)
    reference = write_reference(tmp_path, config, tiny_tensors(config))
    assert_close(all_logits(load_family(tmp_path, executor), prompts), transformers_logits(reference, prompts))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_checkpoints(tmp_path: Path, family: str, dtype: str, executor: str) -> None:
    config = tiny_config(family)
    write_huggingface(tmp_path, config, tiny_tensors(config), dtype=dtype, shards=3)
    prompts = prompts_for(config)[:2]
    reference = write_reference(tmp_path, config, tiny_tensors(config), dtype)
    assert_close(all_logits(load_family(tmp_path, executor), prompts), transformers_logits(reference, prompts))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(("family", "rope"), GGUF_CASES)
def test_gguf_of_the_same_weights(tmp_path: Path, family: str, rope: str, executor: str) -> None:
    # GGUF has no key for windows of some layers
    windows = {"use_sliding_window": False} if family in ("qwen2", "qwen3") else {}
    config = tiny_config(family, rope, **windows)
    tensors = tiny_tensors(config)
    write_huggingface(tmp_path / "hf", config, tensors)
    path = write_gguf(tmp_path / "model.gguf", config, tensors)
    prompts = prompts_for(config)
    reference = write_reference(tmp_path / "hf", config, tensors)
    assert_close(all_logits(load_family(path, executor), prompts), transformers_logits(reference, prompts))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("encoding", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
def test_quantized_gguf_in_full_precision(tmp_path: Path, family: str, encoding: str, executor: str) -> None:
    """With full-precision activations a quantized file computes what its dequantized weights do."""
    sizes: dict[str, Any] = dict(BLOCK_32)
    if family == "phi3":
        sizes |= {"head_dim": None, "num_attention_heads": 6, "num_key_value_heads": 2}
    config = tiny_config(family, **sizes, **({"use_sliding_window": False} if family == "qwen2" else {}))
    tensors = tiny_tensors(config)
    path = write_gguf(tmp_path / "model.gguf", config, tensors, encoding=encoding)
    write_huggingface(tmp_path / "hf", config, dequantized(tensors, encoding))
    prompts = prompts_for(config)[:2]
    assert_close(all_logits(load_family(path, executor), prompts), transformers_logits(tmp_path / "hf", prompts))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("encoding", ["Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_blocks_of_256_in_full_precision(tmp_path: Path, encoding: str, executor: str) -> None:
    config = tiny_config("llama", **BLOCK_256)
    tensors, blocks = random_blocks(tiny_tensors(config), encoding)
    path = write_gguf(tmp_path / "model.gguf", config, tensors, blocks=blocks)
    write_huggingface(tmp_path / "hf", config, tensors)
    prompts = prompts_for(config)[:2]
    assert_close(all_logits(load_family(path, executor), prompts), transformers_logits(tmp_path / "hf", prompts))


BIASES = [("llama", {"attention_bias": True, "mlp_bias": True}), ("olmo", {"attention_bias": True})]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("source", ["hf", "model.gguf"])
@pytest.mark.parametrize(("family", "changes"), BIASES)
def test_biases(tmp_path: Path, family: str, changes: dict[str, Any], source: str, executor: str) -> None:
    config = tiny_config(family, **changes)
    tensors = tiny_tensors(config)
    write_huggingface(tmp_path / "hf", config, tensors)
    write_gguf(tmp_path / "model.gguf", config, tensors)
    prompts = prompts_for(config)[:2]
    model = load_family(tmp_path / source, executor)
    assert_close(all_logits(model, prompts), transformers_logits(tmp_path / "hf", prompts))


YARNS = [
    {"attention_factor": 0.8},
    {"mscale": 0.7, "mscale_all_dim": 0.3},
    {"truncate": False},
    {"factor": LENGTH / ORIGINAL_LENGTH, "beta_fast": 32, "beta_slow": 1},
]


@pytest.mark.parametrize("changes", YARNS)
def test_options_of_yarn(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = tiny_config("llama", "yarn")
    config["rope_scaling"] |= changes
    write_huggingface(tmp_path, config, tiny_tensors(config))
    prompts = prompts_for(config)[:2]
    assert_close(all_logits(load_family(tmp_path, "reference"), prompts), transformers_logits(tmp_path, prompts))
