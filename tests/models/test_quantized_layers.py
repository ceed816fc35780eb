"""Checkpoints whose layers are codes and scales in tensors of their own: every scheme, every family.

A quantized checkpoint computes what the float32 checkpoint of the matrices that it means computes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from puna.graph.weights.quantized import QuantizedWeight
from puna.pipelines.architectures.llama3 import LlamaModelBase
from support.checkpoints import BLOCK_32, FAMILIES, tiny_config, tiny_tensors
from support.family_model import all_logits, load_family, random_prompt
from support.quantized_checkpoints import SCHEMES, write_quantized

# The block format that holds a scheme's values exactly, or what they are rounded to.
FORMATS = {
    "gptq1-4-32-sym": "Q4_0",
    "gptq2-4--1-sym": "Q4_0",
    "gptq1-4-32-asym": "Q5_0",
    "gptq2-4-32-asym": "Q5_0",
    "gptq1-8-32-sym": "Q8_0",
    "awq-32": "Q5_0",
    "awq--1": "Q5_0",
    "gptq2-8--1-asym": "F16",
    "gptq1-4-32-sym-desc_act": "F16",
    "gptq1-8-32-asym-desc_act": "F16",
    "int4-32-sym-pack-quantized-BF16": "Q4_0",
    "int4-32-asym-pack-quantized-BF16": "Q5_0",
    "int8-32-sym-pack-quantized-F16": "Q8_0",
    "int8--1-sym-int-quantized-BF16": "Q8_0",
    "int4-32-sym-int-quantized-F16": "Q4_0",
    "mxfp4": "MXFP4",
}
PROMPTS = [random_prompt(160, length, seed=length) for length in (23, 1, 9)]


@pytest.fixture(scope="module")
def checkpoints() -> Any:
    """Writes each checkpoint once: `checkpoints(family, scheme)` is (quantized, what it means)."""
    with TemporaryDirectory() as root:

        @cache
        def write(family: str, scheme: str) -> tuple[Path, Path]:
            config = tiny_config(family, **BLOCK_32)
            return write_quantized(Path(root) / f"{family}-{scheme}", config, tiny_tensors(config), SCHEMES[scheme])

        yield write


def weights_of(model: LlamaModelBase) -> list[QuantizedWeight]:
    return [weight for weight in model.state_dict.values() if isinstance(weight, QuantizedWeight)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_float32_computes_what_the_checkpoint_means(checkpoints: Any, scheme: str) -> None:
    """The same bits: no value is rounded when float32 is asked for."""
    quantized, meant = checkpoints("llama", scheme)
    model = load_family(quantized)
    assert len(weights_of(model)) == 21
    for mine, theirs in zip(all_logits(model, PROMPTS), all_logits(load_family(meant), PROMPTS), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_are_the_stored_values(checkpoints: Any, scheme: str) -> None:
    """Exact in a block format; else the nearest of the type that the documentation names."""
    quantized, meant = checkpoints("llama", scheme)
    model, plain = load_family(quantized, precision="auto"), load_family(meant)
    formats = set()
    for name, weight in model.state_dict.items():
        if not isinstance(weight, QuantizedWeight):
            continue
        formats.add(weight.format)
        expected = plain.state_dict[name]
        if weight.quantization_encoding is None:
            expected = expected.astype(weight.dtype.to_numpy()).astype(np.float32)
        np.testing.assert_array_equal(weight.to_float32(), expected)
    assert formats == {FORMATS.get(scheme, "BF16")}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_native_computes_what_the_reference_computes(checkpoints: Any, scheme: str) -> None:
    """A last bit that differs before activations are rounded may move one of them to its neighbour."""
    quantized, _ = checkpoints("llama", scheme)
    native, reference = (load_family(quantized, executor, precision="auto") for executor in ("native", "reference"))
    for mine, theirs in zip(all_logits(native, PROMPTS), all_logits(reference, PROMPTS), strict=True):
        difference = np.abs(mine - theirs)
        assert difference.max() <= 3e-2 * np.abs(theirs).max()
        assert np.median(difference) <= 5e-3 * np.abs(theirs).max()


# Layers that stay plain, by what their names hold.
KEPT = {
    "nothing": (),
    "a layer": ("embed_tokens", "layers.0."),
    "parts of layers": ("embed_tokens", "k_proj", "gate_proj", "layers.1.self_attn.o_proj"),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("scheme", ["int4-32-sym-pack-quantized-BF16", "mxfp8", "fp8-static"])
def test_any_layers_may_be_quantized(tmp_path: Path, scheme: str, kept: str, tied: bool) -> None:
    """Embedding and output matrix too, and neighbours that one instruction would compute together need not be alike."""
    config = tiny_config("llama", **{**BLOCK_32, "num_hidden_layers": 2, "tie_word_embeddings": tied})
    section = {key: value for key, value in SCHEMES[scheme].section.items() if key not in ("ignore", "ignored_layers")}
    made = replace(SCHEMES[scheme], section=section)
    keeps = KEPT[kept]
    paths = write_quantized(
        tmp_path, config, tiny_tensors(config), made, keeps=lambda module: any(part in module for part in keeps)
    )
    for mine, theirs in zip(*(all_logits(load_family(path), PROMPTS) for path in paths), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    alone = [all_logits(load_family(paths[0], precision="auto"), [prompt])[0] for prompt in PROMPTS]
    batched = all_logits(load_family(paths[0], precision="auto"), PROMPTS)
    for mine, theirs in zip(batched, alone, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("scheme", ["gptq1-4-32-asym", pytest.param("fp8-channel", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(checkpoints: Any, family: str, scheme: str) -> None:
    quantized, meant = checkpoints(family, scheme)
    model = load_family(quantized)
    assert weights_of(model)
    for mine, theirs in zip(all_logits(model, PROMPTS), all_logits(load_family(meant), PROMPTS), strict=True):
        np.testing.assert_array_equal(mine, theirs)
