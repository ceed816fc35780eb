"""Recipes: which tensor gets which format. tests/oracle/test_quantize.py compares all of them with llama.cpp."""

from __future__ import annotations

import re

import pytest

from puna.errors import InvalidRequestError
from puna.graph.quantization import (
    RECIPES,
    QuantizationOptions,
    TensorOutline,
    choose_formats,
    fallback_sentence,
    has_small_values,
    recipe_of,
)

LAYERS = 16


def model(columns: int = 512, stored: str = "F32", tied: bool = True) -> list[TensorOutline]:
    matrices = {
        "attn_q": columns,
        "attn_k": columns,
        "attn_v": columns,
        "attn_output": columns,
        "ffn_gate": columns,
        "ffn_up": columns,
        "ffn_down": 1024,
    }
    tensors = [TensorOutline("token_embd.weight", (900, columns), stored)]
    for layer in range(LAYERS):
        tensors.append(TensorOutline(f"blk.{layer}.attn_norm.weight", (columns,), "F32"))
        tensors.append(TensorOutline(f"blk.{layer}.attn_q.bias", (columns,), "F16"))
        tensors += [
            TensorOutline(f"blk.{layer}.{name}.weight", (256, width), stored) for name, width in matrices.items()
        ]
    if not tied:
        tensors.append(TensorOutline("output.weight", (900, columns), stored))
    return tensors


def chosen(recipe: str, tensors: list[TensorOutline] | None = None, group: int = 1, **more: object) -> dict[str, str]:
    options = QuantizationOptions(recipe_of(recipe, "to"), LAYERS, group, **more)  # type: ignore[arg-type]
    return {c.outline.name: c.format for c in choose_formats(tensors or model(), options)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_vectors_stay_float(recipe: str) -> None:
    formats = chosen(recipe)
    assert {formats[f"blk.{layer}.attn_norm.weight"] for layer in range(LAYERS)} == {"F32"}
    assert formats["blk.3.attn_q.bias"] == "F32"
    assert formats["blk.3.ffn_gate.weight"] == RECIPES[recipe].format


def test_more_bits_for_some_layers_of_q4_k_m() -> None:
    formats = chosen("q4_k_m")
    better = [layer for layer in range(LAYERS) if formats[f"blk.{layer}.ffn_down.weight"] == "Q6_K"]
    assert better == [0, 1, 4, 7, 10, 13, 14, 15]
    assert [layer for layer in range(LAYERS) if formats[f"blk.{layer}.attn_v.weight"] == "Q6_K"] == better
    assert formats["token_embd.weight"] == "Q6_K"
    untied = chosen("Q4_K_M", model(tied=False))
    assert (untied["token_embd.weight"], untied["output.weight"]) == ("Q4_K", "Q6_K")


def test_layers_are_numbers_not_text() -> None:
    tensors = list(reversed(model()))
    assert chosen("Q4_K_M", tensors) == chosen("Q4_K_M")


def test_grouped_queries_and_importance_change_formats() -> None:
    assert chosen("Q2_K")["blk.5.attn_v.weight"] == "Q3_K"
    assert chosen("Q2_K", group=4)["blk.5.attn_v.weight"] == "Q4_K"
    assert chosen("IQ4_XS", group=8)["blk.5.attn_v.weight"] == "Q5_K"
    assert chosen("IQ4_XS")["blk.0.ffn_down.weight"] == "Q5_K"
    assert chosen("IQ4_XS", has_importance=True)["blk.0.ffn_down.weight"] == "IQ4_XS"
    assert chosen("Q4_0", has_importance=True)["blk.0.ffn_down.weight"] == "Q4_1"
    assert chosen("Q4_K_S", has_small_values=True)["blk.9.attn_v.weight"] == "Q5_K"
    assert has_small_values("llama", 80, 8) and not has_small_values("llama", 80, 1)


def test_rows_that_are_no_multiple_of_the_block() -> None:
    options = QuantizationOptions(recipe_of("Q4_K_M", "to"), LAYERS, 3)
    choices = choose_formats(model(columns=576), options)
    formats = {c.outline.name: (c.format, c.wanted) for c in choices}
    assert formats["blk.5.attn_q.weight"] == ("Q5_0", "Q4_K")
    assert formats["blk.0.attn_v.weight"] == ("Q8_0", "Q6_K")
    assert formats["token_embd.weight"] == ("Q8_0", None)
    assert formats["blk.5.ffn_down.weight"] == ("Q4_K", None)
    sentence = fallback_sentence(choices)
    assert sentence is not None and "Q5_0 instead of Q4_K (576 columns)" in sentence
    assert {f for n, f in chosen("Q4_0", model(columns=40)).items() if "attn_q.w" in n} == {"F16"}
    assert fallback_sentence(choose_formats(model(), options)) is None


def test_what_the_user_says_goes_first() -> None:
    overrides = ((re.compile(r"blk\.(0|1)\."), "Q8_0"), (re.compile("attn"), "Q6_K"))
    formats = chosen("Q4_K_M", overrides=overrides, token_embedding_format="F16")
    assert formats["blk.1.attn_q.weight"] == "Q8_0" and formats["blk.2.attn_q.weight"] == "Q6_K"
    assert formats["blk.2.ffn_up.weight"] == "Q4_K" and formats["token_embd.weight"] == "F16"
    untied = chosen("Q4_K_M", model(tied=False), output_format="Q8_0")
    assert untied["output.weight"] == "Q8_0" and untied["token_embd.weight"] == "Q4_K"
    assert chosen("Q4_K_M", output_format="Q8_0")["token_embd.weight"] == "Q8_0"
    pure = chosen("Q3_K_L", model(tied=False), is_pure=True)
    assert {f for n, f in pure.items() if n.endswith("weight") and "norm" not in n} == {"Q3_K"}


def test_quantized_weights_are_not_quantized_again() -> None:
    with pytest.raises(InvalidRequestError, match=r"token_embd.weight is Q8_0 already.*--allow-requantize"):
        chosen("Q4_K_M", model(stored="Q8_0"))
    assert chosen("Q4_K_M", model(stored="Q8_0"), may_requantize=True) == chosen("Q4_K_M")
    assert set(chosen("Q8_0", model(stored="Q8_0")).values()) == {"Q8_0", "F32"}


def test_unknown_recipe() -> None:
    with pytest.raises(InvalidRequestError, match=r"to: 'Q4_K_XL' is no recipe; there is: Q2_K, .*Q4_K_M.*BF16"):
        recipe_of("Q4_K_XL", "to")
