"""Adapters on every family: what they give is what a checkpoint gives whose weights they were added to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.entrypoints.llm import LLM
from support.adapters import random_pairs, write_gguf_adapter, write_peft
from support.checkpoints import FAMILIES, GGUF_FAMILIES, tiny_config, tiny_tensors, write_huggingface
from support.gguf_checkpoints import gguf_name, paired_rows, write_gguf

OPTIONS: dict[str, Any] = {"dtype": "float32", "kv_cache_dtype": "float32", "enable_weight_cache": False, "threads": 1}
PROMPT = [3, 17, 42, 5, 8, 61, 2]


def assert_close(got: Any, expected: Any) -> None:
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()


def products(tensors: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the linear modules of a checkpoint."""
    named = {name.removesuffix(".weight"): values.shape for name, values in tensors.items() if values.ndim == 2}
    embeddings = ("embed_tokens", "wte", "tok_embeddings")
    return {name: shape for name, shape in named.items() if name.rsplit(".", 1)[-1] not in embeddings}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_is_its_sum_with_the_weights(family: str, tmp_path: Path) -> None:
    config = tiny_config(family)
    tensors = tiny_tensors(config)
    pairs = random_pairs(products(tensors), 5, 1)
    adapter = write_peft(tmp_path / "adapter", pairs, lora_alpha=3, use_rslora=True)
    scale = np.float32(3 / 5**0.5)
    sums = {f"{name}.weight": tensors[f"{name}.weight"] + scale * b @ a for name, (a, b) in pairs.items()}
    merged = LLM(write_huggingface(tmp_path / "merged", config, tensors | sums), **OPTIONS)
    (expected,) = merged.logits([PROMPT])
    bases = [write_huggingface(tmp_path / "base", config, tensors)]
    if family in GGUF_FAMILIES:
        bases.append(write_gguf(tmp_path / "base.gguf", config, tensors))
    for base in bases:
        llm = LLM(base, enable_lora=True, lora_paths=[f"a={adapter}"], **OPTIONS)
        with_adapter, bare = llm.logits([PROMPT, PROMPT], adapter=["a", None])
        assert_close(with_adapter, expected)
        assert np.abs(bare - expected).max() > 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_adapters_of_llama_cpp(family: str, tmp_path: Path) -> None:
    """On the GGUF file whose rows theirs are, and on the directory whose rows are in another order."""
    config = tiny_config(family)
    tensors = tiny_tensors(config)
    pairs = random_pairs(products(tensors), 4, 2)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    stored = {}
    for name, (a, b) in pairs.items():
        count = heads.get(name.rsplit(".", 1)[-1])
        rows = paired_rows(b, count) if family == "llama" and count else b
        stored[gguf_name(f"{name}.weight", family).removesuffix(".weight")] = (a, rows)
    draw = np.random.default_rng(3)
    embedding = [draw.standard_normal((n, 4)).astype(np.float32) for n in (config["vocab_size"], config["hidden_size"])]
    stored["token_embd"] = (embedding[0], embedding[1])
    adapter = write_gguf_adapter(tmp_path / "adapter.gguf", stored, 6.0, architecture=family)
    sums = {f"{name}.weight": tensors[f"{name}.weight"] + np.float32(1.5) * b @ a for name, (a, b) in pairs.items()}
    embed = "model.embed_tokens.weight"
    sums[embed] = tensors[embed] + np.float32(1.5) * embedding[0] @ embedding[1].T
    sums.setdefault("lm_head.weight", tensors.get("lm_head.weight", tensors[embed]))
    untied = config | {"tie_word_embeddings": False}
    merged = LLM(write_huggingface(tmp_path / "merged", untied, tensors | sums), **OPTIONS)
    (expected,) = merged.logits([PROMPT])
    for base in (
        write_gguf(tmp_path / "base.gguf", config, tensors),
        write_huggingface(tmp_path / "base", config, tensors),
    ):
        llm = LLM(base, enable_lora=True, lora_paths=[f"a={adapter}"], **OPTIONS)
        (got,) = llm.logits([PROMPT], adapter="a")
        assert_close(got, expected)


def test_parts_of_a_stacked_product(tmp_path: Path) -> None:
    """Phi-3's Q, K and V are one matrix; an adapter may know them by their own names."""
    config = tiny_config("phi3")
    tensors = tiny_tensors(config)
    base = write_huggingface(tmp_path / "base", config, tensors)
    stacked = tensors["model.layers.1.self_attn.qkv_proj.weight"]
    kv_width = stacked.shape[0] // (config["num_attention_heads"] // config["num_key_value_heads"] + 2)
    width = stacked.shape[0] - 2 * kv_width
    shapes = {"k_proj": kv_width, "q_proj": width}
    pairs = random_pairs(
        {f"model.layers.1.self_attn.{name}": (rows, stacked.shape[1]) for name, rows in shapes.items()}, 2, 1
    )
    adapter = write_peft(tmp_path / "adapter", pairs, lora_alpha=2)
    sums = stacked.copy()
    (k_a, k_b), (q_a, q_b) = pairs.values()
    sums[:width] += q_b @ q_a
    sums[width : width + kv_width] += k_b @ k_a
    changed = tensors | {"model.layers.1.self_attn.qkv_proj.weight": sums}
    (expected,) = LLM(write_huggingface(tmp_path / "merged", config, changed), **OPTIONS).logits([PROMPT])
    llm = LLM(base, enable_lora=True, lora_paths=[f"a={adapter}"], **OPTIONS)
    assert_close(llm.logits([PROMPT], adapter="a")[0], expected)
