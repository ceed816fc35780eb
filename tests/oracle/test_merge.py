"""`puna merge` against PEFT's `merge_and_unload` in float32, tensor by tensor and as logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from puna.entrypoints.cli import run
from puna.entrypoints.llm import LLM
from support.checkpoints import tiny_config, tiny_tensors, write_huggingface
from support.converted import write_model

pytestmark = pytest.mark.oracle

ADAPTERS: dict[str, dict[str, Any]] = {
    "all": {"r": 5, "lora_alpha": 3, "target_modules": "all-linear", "use_rslora": True},
    "patterns": {
        "r": 3,
        "lora_alpha": 6,
        "target_modules": ["o_proj", "down_proj"],
        "rank_pattern": {"down_proj": 7},
        "alpha_pattern": {r".*\.0\..*o_proj": 9},
        "layers_to_transform": [0, 1],
    },
    "vocabulary": {"r": 6, "lora_alpha": 12, "target_modules": ["embed_tokens", "lm_head", "o_proj"]},
}


def merge_by_peft(base: Path, directory: Path, options: dict[str, Any]) -> Any:
    """Saves an adapter as PEFT does, and merges it."""
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(task_type="CAUSAL_LM", **options)
    )
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(directory, save_embedding_layers=False)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    return PeftModel.from_pretrained(plain, directory).merge_and_unload().eval()


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "olmo", "gemma2", "gemma3_text"])
def test_merged_models_are_those_of_peft(family: str, kind: str, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", family, tie_word_embeddings=False)
    expected = merge_by_peft(base, tmp_path / "adapter", ADAPTERS[kind])
    out = tmp_path / "out"
    assert run(["merge", str(base), str(tmp_path / "adapter"), str(out)]) == 0
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict()
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    changed = 0
    for name, tensor in expected.state_dict().items():
        difference = (merged[name] - tensor).abs().max()
        assert difference <= 3e-6 * tensor.abs().max(), name
        changed += not torch.equal(merged[name], before[name])
    assert changed >= 2
    prompt = np.random.default_rng(1).integers(3, 800, 9).tolist()
    with torch.no_grad():
        wanted = np.asarray(expected(torch.tensor([prompt])).logits[0])
    models = [out]
    if family != "olmo":  # GGUF has no place for its clamps
        models.append(tmp_path / "out.gguf")
        assert run(["merge", str(base), str(tmp_path / "adapter"), str(models[-1])]) == 0
    for model in models:
        with LLM(model, dtype="float32", kv_cache_dtype="float32", enable_weight_cache=False) as llm:
            got = llm.logits([prompt])[0]
        assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_dtypes_stay(tmp_path: Path) -> None:
    config = tiny_config("llama")
    base = write_huggingface(tmp_path / "base", config, tiny_tensors(config), dtype="bfloat16")
    expected = merge_by_peft(base, tmp_path / "adapter", ADAPTERS["all"]).state_dict()
    assert run(["merge", str(base), str(tmp_path / "adapter"), str(tmp_path / "out")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").state_dict()
    for name, tensor in expected.items():
        assert merged[name].dtype == torch.bfloat16
        assert (merged[name].float() - tensor).abs().max() <= tensor.abs().max() * 2**-8
