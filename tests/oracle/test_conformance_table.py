"""Every cell of the table in docs/models.md: the largest difference of logits, as a share of the largest logit.

`make conformance` runs this file and writes the table.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llama_cpp import Llama
from transformers import AutoModelForCausalLM

from support.checkpoints import GEMMAS, LENGTH, REARRANGED, WINDOW, rearranged, tiny_config, tiny_tensors
from support.checkpoints import write_huggingface as write_directory
from support.conformance import CELLS, Cell, block_config, oracle_of
from support.family_model import all_logits, load_family, random_prompt
from support.gguf_checkpoints import dequantized, write_gguf
from support.llama_cpp_limits import CHANGES, FLOAT32, GELU_TOLERANCE, TOLERANCE

pytestmark = pytest.mark.oracle

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
Array = np.ndarray[Any, Any]


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_cell(tmp_path: Path, cell: Cell, record_property: Callable[[str, object], None]) -> None:
    torch.set_num_threads(1)
    if cell.source == "llama.cpp":
        oracle, (mine, theirs) = "llama.cpp", _with_llama_cpp(tmp_path, cell.family)
    else:
        oracle, (mine, theirs) = oracle_of(cell.family), _with_transformers(tmp_path, cell)
    error = float(np.abs(mine - theirs).max() / np.abs(theirs).max())
    is_coarse = cell.source == "llama.cpp" and cell.family in GEMMAS
    assert error <= (GELU_TOLERANCE if is_coarse else TOLERANCE)
    for name, value in {**cell._asdict(), "oracle": oracle, "error": f"{error:.0e}"}.items():
        record_property(name, value)


def _with_transformers(directory: Path, cell: Cell) -> tuple[Array, Array]:
    config = block_config(cell.family)
    tensors = tiny_tensors(config)
    dtype = _DTYPES[cell.encoding] if cell.source == "safetensors" else "float32"
    if cell.source == "GGUF":
        model = write_gguf(directory / "model.gguf", config, tensors, encoding=cell.encoding)
        tensors = dequantized(tensors, cell.encoding)
    write_directory(directory / "hf", config, tensors, dtype=dtype)
    if cell.source == "safetensors":
        model = directory / "hf"
    reference = directory / "hf"
    if cell.family in REARRANGED:
        theirs_config, theirs_tensors = rearranged(config, tensors)
        reference = write_directory(directory / "rearranged", theirs_config, theirs_tensors, dtype=dtype)
    prompt = random_prompt(config["vocab_size"], 4 * WINDOW)
    oracle = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = oracle(torch.tensor([prompt])).logits[0].numpy()
    return all_logits(load_family(model), [prompt])[0], theirs


def _with_llama_cpp(directory: Path, family: str) -> tuple[Array, Array]:
    config = tiny_config(family, **CHANGES.get(family, {}))
    path = write_gguf(directory / "model.gguf", config, tiny_tensors(config))
    prompt = random_prompt(config["vocab_size"], 4 * WINDOW)
    cache = {"type_k": FLOAT32, "type_v": FLOAT32, "flash_attn": False}
    model = Llama(str(path), n_ctx=LENGTH, n_threads=1, logits_all=True, verbose=False, **cache)
    model.eval(prompt)
    theirs = np.array(model.scores[: len(prompt)])
    model.close()
    return all_logits(load_family(path), [prompt])[0], theirs
