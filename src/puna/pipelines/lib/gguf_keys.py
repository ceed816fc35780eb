"""The keys of GGUF files that say how a model is computed, by family. Reading and writing follow these tables.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

__all__ = ["COUNTS", "GGUF_FAMILIES", "NEUTRAL", "READ", "REQUIRED", "TOKENIZER_IDS", "WITH_WINDOWS", "GGUFFamily"]


@dataclass(frozen=True)
class GGUFFamily:
    """One `general.architecture`: its `model_type`, and the keys that only it has (metadata key -> config key).

    Its norms have the epsilon of this key; `fixed_norm_eps` is one that no configuration states. `values` are keys that
    every model of the family has and no file states.
    """

    model_type: str
    extra: Mapping[str, str] = field(default_factory=dict)
    norm: Literal["rms_norm_eps", "layer_norm_eps"] = "rms_norm_eps"
    fixed_norm_eps: float | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


_GRANITE_KEYS: Final = MappingProxyType({
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "attention.scale": "attention_multiplier",
    "logit_scale": "logits_scaling",
})
_WINDOW: Final = MappingProxyType({"attention.sliding_window": "sliding_window"})
_SOFT_CAPS: Final = MappingProxyType({
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
})
_GELU: Final = MappingProxyType({"hidden_act": "gelu_pytorch_tanh"})
GGUF_FAMILIES: Final = MappingProxyType({
    "llama": GGUFFamily("llama", _WINDOW),
    "qwen2": GGUFFamily("qwen2"),
    "qwen3": GGUFFamily("qwen3"),
    "granite": GGUFFamily("granite", _GRANITE_KEYS),
    "phi3": GGUFFamily("phi3", _WINDOW),
    "olmo": GGUFFamily(
        "olmo", MappingProxyType({"attention.clamp_kqv": "clip_qkv"}), norm="layer_norm_eps", fixed_norm_eps=1e-5
    ),
    "olmo2": GGUFFamily("olmo2", _WINDOW),
    "smollm3": GGUFFamily("smollm3"),
    "command-r": GGUFFamily("cohere", MappingProxyType({"logit_scale": "logit_scale"}), norm="layer_norm_eps"),
    "cohere2": GGUFFamily(
        "cohere2", MappingProxyType({"logit_scale": "logit_scale", **_WINDOW}), norm="layer_norm_eps"
    ),
    "chatglm": GGUFFamily("glm"),
    "glm4": GGUFFamily("glm4"),
    "stablelm": GGUFFamily("stablelm", norm="layer_norm_eps"),
    "exaone4": GGUFFamily("exaone4", _WINDOW),
    "exaone": GGUFFamily("exaone"),
    "internlm2": GGUFFamily("internlm2"),
    "minicpm": GGUFFamily("minicpm", _GRANITE_KEYS),
    "gemma": GGUFFamily("gemma", values=_GELU),
    "gemma2": GGUFFamily("gemma2", MappingProxyType({**_WINDOW, **_SOFT_CAPS}), values=_GELU),
    "gemma3": GGUFFamily(
        "gemma3_text",
        MappingProxyType({
            **_WINDOW,
            **_SOFT_CAPS,
            "rope.freq_base_swa": "rope_local_base_freq",
        }),
        values=_GELU,
    ),
    "ernie4_5": GGUFFamily("ernie4_5"),
    "seed_oss": GGUFFamily("seed_oss"),
    "baichuan": GGUFFamily("baichuan"),
    "orion": GGUFFamily("orion", norm="layer_norm_eps"),
})
WITH_WINDOWS: Final = MappingProxyType({"llama": "mistral", "olmo2": "olmo3"})
"""Families whose files tell them apart from another one by a window alone: `model_type` without one, and with."""
COUNTS: Final = MappingProxyType({
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
})
REQUIRED: Final = ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count")
# Read below, one by one.
READ: Final = frozenset({
    "attention.value_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
})
# Values at which a key says nothing; anything else is refused. None: nothing that the result depends on.
NEUTRAL: Final = MappingProxyType({
    "vocab_size": None,  # the rows of the embedding tell
    "rope.scaling.finetuned": None,
    "tensor_data_layout": None,
    "expert_count": (0,),
    "expert_used_count": (0,),
    "use_parallel_residual": (False,),
    "attention.sliding_window_pattern": None,  # llama.cpp's own is that of the configuration's class
    "attention.causal": (True,),
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "attention.scale": (0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "logit_scale": (0, 1),
    "rope.scaling.alpha": (0,),
    "rope.scaling.yarn_ext_factor": (1,),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_log_multiplier": (0,),
    "pooling_type": (0,),
})
TOKENIZER_IDS: Final = MappingProxyType({
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
})
