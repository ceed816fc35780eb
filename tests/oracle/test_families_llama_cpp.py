"""GGUF files of every family against llama.cpp: the same names, keys and orders of rows mean the same to both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from llama_cpp import Llama

from support.checkpoints import GEMMAS, GGUF_FAMILIES, LENGTH, tiny_config, tiny_tensors
from support.family_model import all_logits, load_family, random_prompt
from support.gguf_checkpoints import write_gguf
from support.llama_cpp_limits import CHANGES, FLOAT32, GELU_TOLERANCE, TOLERANCE

pytestmark = pytest.mark.oracle

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
    "seed_oss": ("none", "yarn"),
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
