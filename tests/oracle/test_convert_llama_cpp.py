"""Converted files in llama.cpp: it loads them, tokenizes as the directory does, and computes the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import Llama

from puna.tokenization import load_tokenizer
from support.checkpoints import FAMILIES, GEMMAS, LENGTH, tiny_config
from support.converted import VOCABULARY, convert, write_model
from support.family_model import all_logits, load_family, random_prompt
from support.llama_cpp_limits import CHANGES, FLOAT32, GELU_TOLERANCE, TOLERANCE
from support.tiny_tokenizers import CORPUS

pytestmark = pytest.mark.oracle

ROPES = [("llama", "llama3"), ("llama", "yarn"), ("llama", "linear"), ("llama", "longrope"), ("phi3", "longrope")]
CASES = [(family, "none") for family in FAMILIES if family != "helium"] + ROPES
GENERATED = 8


@pytest.mark.parametrize(("family", "rope"), CASES)
def test_logits_tokens_and_greedy_text(tmp_path: Path, family: str, rope: str) -> None:
    changes: dict[str, Any] = dict(CHANGES.get(family, {}))
    if "head_dim" in changes:  # a directory without this key has the default of its family
        changes["head_dim"] = tiny_config(family)["hidden_size"] // changes.get("num_attention_heads", 9)
    directory = write_model(tmp_path / "hf", family, rope, **changes)
    convert(directory, tmp_path / "model.gguf")
    prompt = random_prompt(VOCABULARY, 41)
    betas = {"yarn_beta_fast": 3.0, "yarn_beta_slow": 0.5} if rope == "yarn" else {}
    cache = {"type_k": FLOAT32, "type_v": FLOAT32, "flash_attn": False}
    model = Llama(
        str(tmp_path / "model.gguf"), n_ctx=LENGTH, n_threads=1, logits_all=True, verbose=False, **cache, **betas
    )
    model.eval(prompt)
    theirs = np.array(model.scores[: len(prompt)])
    mine = all_logits(load_family(directory), [prompt])[0]
    tolerance = GELU_TOLERANCE if family in GEMMAS else TOLERANCE
    assert np.abs(mine - theirs).max() <= tolerance * np.abs(theirs).max()
    tokenizer = load_tokenizer(directory)
    for text in CORPUS:
        if "\x00" not in text:
            expected = tokenizer.encode(text, add_special_tokens=False)
            assert model.tokenize(text.encode(), add_bos=False, special=True) == expected, text
    greedy = [token for token, _ in zip(model.generate(prompt, temp=0.0), range(GENERATED), strict=False)]
    model.close()
    converted = load_family(tmp_path / "model.gguf")
    ids = list(prompt)
    for _ in range(GENERATED):
        token = int(all_logits(converted, [ids], lengths=[len(prompt) + GENERATED])[0][-1].argmax())
        ids.append(token)
    assert greedy == ids[len(prompt) :]
