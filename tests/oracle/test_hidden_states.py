"""Hidden states of all layers, the embeddings included, as transformers counts and computes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from puna import LLM
from support.checkpoints import tiny_config, tiny_tensors, write_huggingface
from support.family_model import random_prompt

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("family", ["llama", "gemma", "granite"])  # the latter two scale embeddings
def test_every_layer(family: str, tmp_path: Path) -> None:
    config = tiny_config(family)
    write_huggingface(tmp_path, config, tiny_tensors(config))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    ids = random_prompt(config["vocab_size"], 37, seed=1)
    with torch.no_grad():
        expected = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    layers = range(len(expected))
    with LLM(str(tmp_path), dtype="float32", kv_cache_dtype="float32", enable_weight_cache=False) as llm:
        (states,) = llm.encode({"prompt_token_ids": ids}, layers=list(layers))
    for layer in layers:
        np.testing.assert_allclose(states[layer], expected[layer][0].numpy(), atol=1e-4, err_msg=f"layer {layer}")
