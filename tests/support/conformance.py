"""The cells of the table in docs/models.md: a family, the source it is read from, and the encoding of its matrices."""

from __future__ import annotations

from typing import Any, NamedTuple

from support.checkpoints import FAMILIES, GGUF_FAMILIES, REARRANGED, rearranged, tiny_config, tiny_tensors


class Cell(NamedTuple):
    """One comparison.

    Attributes:
        family: `model_type`.
        source: `safetensors`, `GGUF`, or `llama.cpp`: a GGUF file in both engines.
        encoding: How matrices are stored.
    """

    family: str
    source: str
    encoding: str


COLUMNS = (
    ("safetensors", "F32"),
    ("safetensors", "BF16"),
    ("safetensors", "F16"),
    ("GGUF", "F32"),
    ("GGUF", "BF16"),
    ("GGUF", "Q8_0"),
    ("GGUF", "Q4_0"),
    ("llama.cpp", "F32"),
)
"""Source and encoding of each column of figures."""
CELLS = [
    Cell(family, source, encoding)
    for family in FAMILIES
    for source, encoding in COLUMNS
    if source == "safetensors" or family in GGUF_FAMILIES
]


def block_config(family: str) -> dict[str, Any]:
    """A configuration whose rows are whole blocks of 32: six heads of 16."""
    plain = tiny_config(family)
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2}
    if plain["num_key_value_heads"] == plain["num_attention_heads"]:
        heads["num_key_value_heads"] = 6
    sizes: dict[str, Any] = {"vocab_size": 160, "hidden_size": 96, "intermediate_size": 160, **heads}
    if "head_dim" in plain:
        sizes["head_dim"] = 16
    if "query_pre_attn_scalar" in plain:  # GGUF has no key for any other
        sizes["query_pre_attn_scalar"] = 16
    if family in ("qwen2", "qwen3"):  # GGUF has no key for windows of some layers
        sizes["use_sliding_window"] = False
    return tiny_config(family, **sizes)


def architecture_of(family: str) -> str:
    """The class that `architectures` names."""
    return str(tiny_config(family)["architectures"][0])


def oracle_of(family: str) -> str:
    """What logits are compared with, in the words of the table."""
    if family not in REARRANGED:
        return "transformers"
    config = tiny_config(family)
    theirs, _ = rearranged(config, tiny_tensors(config))
    return f"transformers' {str(theirs['architectures'][0]).removesuffix('ForCausalLM')}, tensors rearranged"
