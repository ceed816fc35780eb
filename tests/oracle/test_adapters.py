"""Adapters against PEFT and transformers in float32: all kinds of targets, mixed with bare rows in one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from puna.entrypoints.llm import LLM
from support.checkpoints import tiny_config, tiny_tensors, write_huggingface
from support.gguf_checkpoints import write_gguf

pytestmark = pytest.mark.oracle

OPTIONS: dict[str, Any] = {"dtype": "float32", "kv_cache_dtype": "float32", "enable_weight_cache": False}
ADAPTERS: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "all": {"r": 16, "lora_alpha": 3, "target_modules": "all-linear", "use_rslora": True},
    "patterns": {
        "r": 3,
        "lora_alpha": 6,
        "target_modules": r".*\.(q_proj|down_proj)",
        "rank_pattern": {"down_proj": 7, r"layers\.1\.self_attn\.q_proj": 5},
        "alpha_pattern": {r".*\.0\..*q_proj": 9},
    },
    "one_layer": {"r": 2, "lora_alpha": 2, "target_modules": ["gate_proj", "up_proj"], "layers_to_transform": [1]},
    "vocabulary": {"r": 6, "lora_alpha": 12, "target_modules": ["embed_tokens", "lm_head", "v_proj"]},
}
PHI3 = {
    "attention": {"r": 4, "lora_alpha": 8, "target_modules": ["qkv_proj", "o_proj"]},
    "all": ADAPTERS["all"],
    "one_layer": {"r": 2, "lora_alpha": 2, "target_modules": ["gate_up_proj"], "layers_to_transform": [1]},
}
LENGTHS = (9, 11, 5, 10, 7, 11, 3)  # within the windows, which GGUF files do not tell of every family


def save_adapter(base: Path, directory: Path, options: dict[str, Any], seed: int) -> Path:
    """An adapter as PEFT makes and saves it, with numbers in its B too."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    torch.manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(directory, save_embedding_layers=False)
    return directory


def peft_logits(base: Path, adapter: Path | None, prompt: list[int]) -> np.ndarray[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return np.asarray(model.eval()(torch.tensor([prompt])).logits[0])


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "phi3", "olmo"])
def test_logits_are_those_of_peft(family: str, tmp_path: Path) -> None:
    config = tiny_config(family)
    tensors = tiny_tensors(config)
    base = write_huggingface(tmp_path / "base", config, tensors)
    kinds = PHI3 if family == "phi3" else ADAPTERS
    paths: dict[str | None, Path] = {
        name: save_adapter(base, tmp_path / name, options, seed) for seed, (name, options) in enumerate(kinds.items())
    }
    names = [*paths, None, next(iter(paths))]
    draw = np.random.default_rng(1)
    prompts = [draw.integers(3, config["vocab_size"], length).tolist() for length in LENGTHS[: len(names)]]
    expected = [peft_logits(base, paths.get(name), prompt) for name, prompt in zip(names, prompts, strict=True)]
    for model in (base, write_gguf(tmp_path / "base.gguf", config, tensors)):
        entries = [f"{name}={path}" for name, path in paths.items()]
        llm = LLM(model, enable_lora=True, lora_paths=entries, **OPTIONS)
        for got, wanted in zip(llm.logits(prompts, adapter=names), expected, strict=True):
            difference, largest = np.abs(got - wanted).max(), np.abs(wanted).max()
            assert difference <= 1e-4 * largest, f"{difference:.2e} of {largest:.2e}"
