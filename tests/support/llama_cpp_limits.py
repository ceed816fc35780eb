"""What llama.cpp cannot load or computes otherwise, for comparisons with it."""

from __future__ import annotations

from typing import Any

FLOAT32 = 0  # its number as a type of the cache
TOLERANCE = 1e-4
GELU_TOLERANCE = 3e-3  # it looks GELU up in a table of float16

# Changes of configurations that it can load: heads apart from the hidden size, windows outside of attention types
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
    "ministral": {"sliding_window": None, "layer_types": None},
}
