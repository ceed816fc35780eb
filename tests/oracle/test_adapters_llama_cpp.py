"""GGUF adapters against llama.cpp in float32: the same logits from the same two files, and from a merged one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_cpp import Llama

from puna.entrypoints.cli import run
from puna.entrypoints.llm import LLM
from support.adapters import random_pairs, write_gguf_adapter
from support.checkpoints import LENGTH, tiny_config, tiny_tensors
from support.family_model import random_prompt
from support.gguf_checkpoints import write_gguf
from support.llama_cpp_limits import CHANGES, FLOAT32, GELU_TOLERANCE, TOLERANCE

pytestmark = pytest.mark.oracle

OPTIONS: dict[str, Any] = {"dtype": "float32", "kv_cache_dtype": "float32", "enable_weight_cache": False}


def llama_cpp_logits(model: Path, adapter: Path | None, prompt: list[int]) -> np.ndarray[Any, Any]:
    options: dict[str, Any] = {"type_k": FLOAT32, "type_v": FLOAT32, "flash_attn": False, "logits_all": True}
    if adapter is not None:
        options["lora_path"] = str(adapter)
    llama = Llama(str(model), n_ctx=LENGTH, n_threads=2, verbose=False, **options)
    llama.eval(prompt)
    logits = np.array(llama.scores[: len(prompt)])
    llama.close()
    return logits


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gemma2", "olmo2", "internlm2"])
def test_logits_are_those_of_llama_cpp(family: str, tmp_path: Path) -> None:
    config = tiny_config(family, **CHANGES.get(family, {}))
    base = write_gguf(tmp_path / "base.gguf", config, tiny_tensors(config))
    shapes = {
        tensor.name.removesuffix(".weight"): (int(tensor.shape[1]), int(tensor.shape[0]))
        for tensor in gguf.GGUFReader(base).tensors
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2
    }
    architecture = str(config["model_type"]).removesuffix("_text")
    adapter = write_gguf_adapter(tmp_path / "a.gguf", random_pairs(shapes, 5, 1), 3.0, architecture=architecture)
    prompt = random_prompt(config["vocab_size"], 9)
    expected = [llama_cpp_logits(base, path, prompt) for path in (adapter, None)]
    largest = np.abs(expected[0]).max()
    tolerance = (GELU_TOLERANCE if family.startswith("gemma") else TOLERANCE) * largest
    assert np.abs(expected[0] - expected[1]).max() > 0.01 * largest
    with LLM(base, enable_lora=True, lora_paths=[f"a={adapter}"], **OPTIONS) as llm:
        for got, wanted in zip(llm.logits([prompt, prompt], adapter=["a", None]), expected, strict=True):
            assert np.abs(got - wanted).max() <= tolerance
    out = tmp_path / "out.gguf"
    assert run(["merge", str(base), str(adapter), str(out)]) == 0
    assert np.abs(llama_cpp_logits(out, None, prompt) - expected[0]).max() <= tolerance
