"""The keys of a GGUF file that say how a model is computed, from a configuration in Hugging Face's words.

The inverse of `puna.pipelines.lib.gguf_config`, by the same tables. What a GGUF file cannot say is found by
`puna.conversion.agreement`, which reads the keys back.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from puna.errors import UnsupportedModelError
from puna.nn.rotary_embedding import (
    DynamicRopeScalingParams,
    FactorRopeScalingParams,
    LinearRopeScalingParams,
    Llama3RopeScalingParams,
    LongRoPEScalingParams,
    RotaryEmbedding,
    YarnRopeScalingParams,
)
from puna.pipelines.lib.gguf_keys import COUNTS, GGUF_FAMILIES

if TYPE_CHECKING:
    from puna.conversion.gguf_file import MetadataValue
    from puna.pipelines.architectures.llama3 import Llama3Config

__all__ = ["model_metadata", "rope_tensors"]

# Values that a family's configuration computes from keys of its own: the results are what a file states.
_COMPUTED: Final = frozenset(
    {
        "embedding_multiplier",
        "residual_multiplier",
        "logits_scaling",
        "sliding_window",
        "clip_qkv",
    }
)


def model_metadata(architecture: str, config: Any, numbers: Llama3Config) -> dict[str, MetadataValue]:
    """The keys of an architecture.

    Args:
        architecture: `general.architecture` of the file.
        config: The checkpoint's configuration.
        numbers: The same as numbers of the decoder.

    Raises:
        UnsupportedModelError: GGUF has no form for the way in which the context was stretched.
    """
    family = GGUF_FAMILIES[architecture]
    found: dict[str, MetadataValue] = {}
    for key, name in COUNTS.items():
        value = getattr(config, name, None)
        if value is not None:
            found[key] = int(value)
    if "attention.key_length" in found:
        found["attention.value_length"] = found["attention.key_length"]
    if family.norm == "rms_norm_eps":
        found["attention.layer_norm_rms_epsilon"] = float(config.rms_norm_eps)
    else:
        fixed = family.fixed_norm_eps
        found["attention.layer_norm_epsilon"] = float(config.layer_norm_eps) if fixed is None else fixed
    found["vocab_size"] = int(config.vocab_size)
    found["rope.freq_base"] = float(numbers.rope_theta)
    found["rope.dimension_count"] = numbers.rotary_embedding().rot_dim
    for key, name in family.extra.items():
        value = getattr(numbers if name in _COMPUTED else config, name, None)
        if value is not None:
            found[key] = int(value) if name == "sliding_window" else float(value)
    found |= _scaling(architecture, config, numbers)
    return {f"{architecture}.{key}": value for key, value in found.items()}


def _scaling(architecture: str, config: Any, numbers: Llama3Config) -> dict[str, MetadataValue]:
    rope = numbers.rotary_embedding()
    found: dict[str, MetadataValue] = {}
    original = getattr(config, "original_max_position_embeddings", None)
    if architecture == "phi3" and original is not None:
        found["rope.scaling.original_context_length"] = int(original)
    match rope.scaling:
        case LinearRopeScalingParams() as linear:
            found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(linear.factor)}
        case YarnRopeScalingParams() as yarn:
            found |= {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": float(yarn.factor),
                "rope.scaling.original_context_length": yarn.original_max_position,
                "rope.scaling.yarn_beta_fast": float(yarn.beta_fast),
                "rope.scaling.yarn_beta_slow": float(yarn.beta_slow),
            }
            # the key multiplies the factor that follows from the stretch
            expected = 1.0 if yarn.factor <= 1 else 0.1 * math.log(yarn.factor) + 1.0
            share = rope.attention_factor(1) / expected
            if abs(share - 1) > 1e-7:
                found["rope.scaling.attn_factor"] = share
        case LongRoPEScalingParams() as longrope:
            found["rope.scaling.original_context_length"] = longrope.original_max_position
            found["rope.scaling.attn_factor"] = float(rope.attention_factor(1))
            if architecture != "phi3":  # whose files have no such key
                found["rope.scaling.type"] = "longrope"
        case DynamicRopeScalingParams():
            supported = "linear, llama3, yarn, longrope: GGUF has no form for it"
            raise UnsupportedModelError("rope_type", "dynamic", file=config.source, supported=supported)
    return found


def rope_tensors(numbers: Llama3Config) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """The factors by which a file divides the rotary frequencies: float32 `[rot_dim / 2]`, by the names of tensors."""
    rope = numbers.rotary_embedding()
    match rope.scaling:
        case Llama3RopeScalingParams() | FactorRopeScalingParams():
            plain = RotaryEmbedding(rope.head_dim, rope.rot_dim, rope.theta).inv_freq(1).astype(np.float64)
            return {"rope_freqs.weight": (plain / rope.inv_freq(1)).astype(np.float32)}
        case LongRoPEScalingParams() as longrope:
            return {
                "rope_factors_long.weight": np.array(longrope.long_factor, np.float32),
                "rope_factors_short.weight": np.array(longrope.short_factor, np.float32),
            }
    return {}
