"""Whether two descriptions of a decoder are of the same one: a GGUF file's against a configuration's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Final

import numpy as np

from puna.nn.decoder_spec import DecoderSpec
from puna.nn.rotary_embedding import RotaryEmbedding

__all__ = ["Difference", "differences"]

Difference = tuple[str, Any, Any]
"""The name of a number, its value in the first description, and in the second."""

# How tensors lie in a file; how a step is run.
_LAYOUT: Final = frozenset(
    {
        "interleaved_rope",
        "stacked_qkv",
        "stacked_mlp",
        "kv_params",
        "return_logits",
        "return_hidden_states",
        "hidden_state_layers",
        "use_subgraphs",
    }
)
_FLOAT32: Final = 1e-6  # files hold numbers in float32


def differences(first: DecoderSpec, second: DecoderSpec, length: int) -> Iterator[Difference]:
    """The numbers in which two decoders differ by more than the rounding of files, in the order of `DecoderSpec`.

    Args:
        first: One decoder.
        second: The other.
        length: Rotary embeddings are compared for texts of up to so many tokens.
    """
    for field in fields(DecoderSpec):
        if field.name in _LAYOUT:
            continue
        mine, theirs = getattr(first, field.name), getattr(second, field.name)
        if field.name == "attention_multiplier":
            mine, theirs = first.attention_scale, second.attention_scale
        if field.name == "sliding_window_layers":
            mine, theirs = _windowed(first), _windowed(second)
        if field.name == "sliding_window":
            mine, theirs = (spec.sliding_window if _windowed(spec) else None for spec in (first, second))
        if isinstance(mine, RotaryEmbedding) and isinstance(theirs, RotaryEmbedding):
            if not _rotate_alike(mine, theirs, length):
                yield f"{field.name}.scaling", mine.scaling, theirs.scaling
        elif not _equal(mine, theirs):
            yield field.name, mine, theirs


def _windowed(spec: DecoderSpec) -> frozenset[int]:
    return frozenset(layer for layer in range(spec.num_layers) if spec.window_of(layer) is not None)


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, float) or isinstance(second, float):
        is_number = isinstance(first, (int, float)) and isinstance(second, (int, float))
        return is_number and math.isclose(first, second, rel_tol=_FLOAT32)
    return bool(first == second)


def _rotate_alike(first: RotaryEmbedding, second: RotaryEmbedding, length: int) -> bool:
    if (first.head_dim, first.rot_dim) != (second.head_dim, second.rot_dim):
        return False
    return all(
        np.allclose(first.inv_freq(reach), second.inv_freq(reach), rtol=_FLOAT32, atol=0)
        and math.isclose(first.attention_factor(reach), second.attention_factor(reach), rel_tol=_FLOAT32)
        and first.regime(reach) == second.regime(reach)
        for reach in (1, length)
    )
