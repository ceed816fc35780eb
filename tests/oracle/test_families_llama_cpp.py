"""GGUF files of every family against llama.cpp: the same names, keys and orders of rows mean the same to both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import Llama

from support.checkpoints import GEMMAS, GGUF_FAMILIES, LENGTH, tiny_config, tiny_tensors
from support.family_model import all_logits, load_family, random_prompt
from support.gguf_checkpoints import write_gguf

pytestmark = pytest.mark.oracle

FLOAT32 = 0  # its number as a type of the cache
TOLERANCE = 1e-4
GELU_TOLERANCE = 3e-3  # it looks GELU up in a table of float16
# What llama.cpp cannot load or computes otherwise: heads apart from the hidden size, windows outside of attention types
# that it knows, factors as tensors where it does not look for them.
CHANGES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False, "head_dim": None},
    "qwen3": {"use_sliding_window": False, "head_dim": None},
    "granite": {"head_dim": None},
    "smollm3": {"head_dim": None},
    "glm": {"head_dim": None, "num_attention_heads": 6, "num_key_value_heads": 2},
    "glm4": {"head_dim": None, "num_attention_heads": 6, "num_key_value_heads": 2},
    # windows of EXAONE 4 are known to it by the number of layers, 64
    "exaone4": {"sliding_window": None, "head_dim": None},
    "exaone": {"head_dim": None},
    "ernie4_5": {"head_dim": None, "use_bias": False},
    "baichuan": {"num_hidden_layers": 32},  # how it tells 7B, which rotates, from 13B, which does not
    "cohere2": {"head_dim": None, "num_attention_heads": 6, "num_key_value_heads": 2},
    "phi3": {"sliding_window": None},
}
KINDS = {
    "llama": ("none", "llama3", "longrope", "linear", "yarn"),
    "mistral": ("none", "yarn"),
    "qwen2": ("none", "linear", "yarn"),
    "granite": ("none", "llama3", "longrope", "linear", "yarn"),
    "phi3": ("none", "longrope"),
    "qwen3": ("none", "linear", "yarn"),
    "olmo": ("none", "linear", "yarn"),
    "olmo2": ("none", "linear", "yarn"),
    "olmo3": ("none", "yarn"),
    "smollm3": ("none", "linear", "yarn"),
    "cohere": ("none", "yarn"),
    "cohere2": ("none",),
    "glm": ("none",),
    "glm4": ("none",),
    "stablelm": ("none",),
    "exaone4": ("none", "llama3"),
    "exaone": ("none", "llama3"),
    "internlm2": ("none",),
    "minicpm": ("none",),
    "baichuan": ("none",),
    "orion": ("none",),
    "gemma": ("none",),
    "ernie4_5": ("none",),
    "gemma2": ("none",),
    "gemma3_text": ("none",),
}


@pytest.mark.parametrize("executor", ["reference", "native"])
@pytest.mark.parametrize(("family", "rope"), [(family, rope) for family in GGUF_FAMILIES for rope in KINDS[family]])
def test_logits_are_those_of_llama_cpp(tmp_path: Path, family: str, rope: str, executor: str) -> None:
    config = tiny_config(family, rope, **CHANGES.get(family, {}))
    path = write_gguf(tmp_path / "model.gguf", config, tiny_tensors(config))
    # its bindings put defaults of their own over these two keys of the file
    betas = {f"yarn_{key}": config["rope_scaling"][key] for key in ("beta_fast", "beta_slow") if rope == "yarn"}
    prompt = random_prompt(config["vocab_size"], 61)
    model = Llama(
        str(path),
        n_ctx=LENGTH,
        n_threads=2,
        logits_all=True,
        flash_attn=False,
        type_k=FLOAT32,
        type_v=FLOAT32,
        verbose=False,
        **betas,
    )
    model.eval(prompt)
    theirs = np.array(model.scores[: len(prompt)])
    model.close()
    mine = all_logits(load_family(path, executor), [prompt])[0]
    tolerance = GELU_TOLERANCE if family in GEMMAS else TOLERANCE
    assert np.abs(mine - theirs).max() <= tolerance * np.abs(theirs).max()
