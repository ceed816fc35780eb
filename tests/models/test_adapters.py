"""Adapters on every family: what they give is what a checkpoint gives whose weights they were added to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.entrypoints.cli import run
from puna.entrypoints.llm import LLM
from support.adapters import random_pairs, write_gguf_adapter, write_peft
from support.checkpoints import BLOCK_32, FAMILIES, GGUF_FAMILIES, tiny_config, tiny_tensors, write_huggingface
from support.gguf_checkpoints import dequantized, gguf_name, paired_rows, random_blocks, write_gguf
from support.quantized_checkpoints import SCHEMES, write_quantized

OPTIONS: dict[str, Any] = {"dtype": "float32", "kv_cache_dtype": "float32", "enable_weight_cache": False, "threads": 1}
PROMPT = [3, 17, 42, 5, 8, 61, 2]


def assert_close(got: Any, expected: Any) -> None:
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()


def products(tensors: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the linear modules of a checkpoint."""
    named = {name.removesuffix(".weight"): values.shape for name, values in tensors.items() if values.ndim == 2}
    embeddings = ("embed_tokens", "wte", "tok_embeddings")
    return {name: shape for name, shape in named.items() if name.rsplit(".", 1)[-1] not in embeddings}


def write_sums(root: Path, config: dict[str, Any], tensors: dict[str, Any]) -> tuple[Path, Path]:
    """An adapter of all products, and a checkpoint whose weights it was added to."""
    pairs = random_pairs(products(tensors), 5, 1)
    adapter = write_peft(root / "adapter", pairs, lora_alpha=3, use_rslora=True)
    scale = np.float32(3 / 5**0.5)
    sums = {f"{name}.weight": tensors[f"{name}.weight"] + scale * b @ a for name, (a, b) in pairs.items()}
    return adapter, write_huggingface(root / "merged", config, tensors | sums)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_is_its_sum_with_the_weights(family: str, tmp_path: Path) -> None:
    """At run time, and when it is merged: in directories of each family's own layout, and in GGUF files."""
    config = tiny_config(family)
    tensors = tiny_tensors(config)
    adapter, merged = write_sums(tmp_path, config, tensors)
    (expected,) = LLM(merged, **OPTIONS).logits([PROMPT])
    bases = [write_huggingface(tmp_path / "base", config, tensors)]
    if family in GGUF_FAMILIES:
        bases.append(write_gguf(tmp_path / "base.gguf", config, tensors))
    for base in bases:
        llm = LLM(base, enable_lora=True, lora_paths=[f"a={adapter}"], **OPTIONS)
        with_adapter, bare = llm.logits([PROMPT, PROMPT], adapter=["a", None])
        assert_close(with_adapter, expected)
        assert np.abs(bare - expected).max() > 0.01 * np.abs(expected).max()
        out = base.with_name(f"out{base.suffix}")
        assert run(["merge", str(base), str(adapter), str(out)]) == 0
        assert_close(LLM(out, **OPTIONS).logits([PROMPT])[0], expected)


KINDS = ["gptq1-4-32-sym", "gptq1-4-32-sym-desc_act", "gptq2-8--1-asym", "awq-32", "int4-32-asym-pack-quantized-BF16",
         "fp8-block", "mxfp4", "nvfp4-modelopt"]  # fmt: skip


@pytest.mark.parametrize("scheme", KINDS)
def test_adapters_of_quantized_checkpoints(scheme: str, tmp_path: Path) -> None:
    """What the base computes with the adapter is what the float32 matrices that it means compute with it."""
    config = tiny_config("llama", **BLOCK_32)
    tensors = tiny_tensors(config)
    quantized, meant = write_quantized(tmp_path / "base", config, tensors, SCHEMES[scheme])
    pairs = random_pairs(products(tensors), 5, 1)
    adapter = write_peft(tmp_path / "adapter", pairs, lora_alpha=3)
    llms = [LLM(base, enable_lora=True, lora_paths=[f"a={adapter}"], **OPTIONS) for base in (quantized, meant)]
    (mine, bare), (theirs, _) = (llm.logits([PROMPT, PROMPT], adapter=["a", None]) for llm in llms)
    np.testing.assert_array_equal(mine, theirs)
    assert np.abs(bare - mine).max() > 0.01 * np.abs(mine).max()
    check_company(quantized, adapter, bare.shape)


@pytest.mark.parametrize("encoding", ["Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "IQ3_S", "MXFP4", "Q2_K", "BF16"])
def test_adapters_of_quantized_files(encoding: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = tiny_config("llama", **sizes, head_dim=64, vocab_size=160, tie_word_embeddings=False)
    tensors = tiny_tensors(config)
    if encoding == "BF16":
        meant, blocks = dequantized(tensors, encoding), None
    else:
        meant, blocks = random_blocks(tensors, encoding)
    adapter, merged = write_sums(tmp_path, config, meant)
    base = write_gguf(tmp_path / "base.gguf", config, meant, encoding="BF16", blocks=blocks)
    (expected,) = LLM(merged, **OPTIONS).logits([PROMPT])
    llm = LLM(base, enable_lora=True, lora_paths=[f"a={adapter}"], **OPTIONS)
    with_adapter, bare = llm.logits([PROMPT, PROMPT], adapter=["a", None])
    assert_close(with_adapter, expected)
    assert np.abs(bare - expected).max() > 0.01 * np.abs(expected).max()
    check_company(base, adapter, bare.shape)


def check_company(base: Path, adapter: Path, shape: tuple[int, ...]) -> None:
    """With the products that kernels have for the base's format: a row's bits are the same alone and beside others."""
    llm = LLM(base, enable_lora=True, lora_paths=[f"a={adapter}"], enable_weight_cache=False)
    prompts = [PROMPT, PROMPT[::-1], PROMPT, [9, 8, 7]]
    names = [None, "a", "a", None]
    for prompt, name, got in zip(prompts, names, llm.logits(prompts, adapter=names), strict=True):
        assert got.shape == (len(prompt), *shape[1:])
        np.testing.assert_array_equal(got, llm.logits([prompt], adapter=name)[0])
    plain = LLM(base, enable_weight_cache=False)
    np.testing.assert_array_equal(plain.logits([PROMPT])[0], llm.logits([PROMPT])[0])


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
