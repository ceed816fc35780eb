"""What a configuration means by the keys that it leaves out: a table per `model_type`.

The values are those of transformers' configuration classes; a test compares the two. Types that are not listed have no
defaults here, and their architectures are refused by the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from puna.pipelines.lib.common_defaults import COHERE, COMMON, GEMMA, GEMMA_2, GLM, LLAMA, OLMO2

__all__ = ["FAMILIES", "FamilyDefaults"]

@dataclass(frozen=True)
class FamilyDefaults:
    """The defaults of one `model_type`.

    Attributes:
        architecture: The causal language model of this type, as `architectures` names it.
        values: Key -> default. None for `num_key_value_heads` means as many as `num_attention_heads`.
        rope_kinds: Kinds of rotary scaling that the reference computes for it, None for all.
        has_partial_rotary: Whether the reference rotates only a share of a head where `partial_rotary_factor` says so.
        partial_rotary_factor: That share, where the configuration does not say it.
        has_local_rope: Whether layers with a window have rotary frequencies of their own, `rope_local_base_freq`.
        aliases: Keys that configurations of this type call otherwise: their name -> ours.
        other_architectures: Further names of its class.
        old_rope_kinds: Names that older configurations of this type gave to a kind.
    """

    architecture: str
    values: Mapping[str, Any]
    rope_kinds: frozenset[str] | None = None
    has_partial_rotary: bool = False
    partial_rotary_factor: float = 1.0
    has_local_rope: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)
    other_architectures: tuple[str, ...] = ()
    old_rope_kinds: Mapping[str, str] = field(default_factory=dict)


FAMILIES: Final[Mapping[str, FamilyDefaults]] = MappingProxyType({
    "llama": FamilyDefaults("LlamaForCausalLM", LLAMA),
    "mistral": FamilyDefaults(
        "MistralForCausalLM",
        MappingProxyType({
            **COMMON,
            "vocab_size": 32000,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 4096 * 32,
            "rms_norm_eps": 1e-6,
            "sliding_window": 4096,
        }),
    ),
    "ministral": FamilyDefaults(
        "MinistralForCausalLM",
        MappingProxyType({
            **COMMON,
            "vocab_size": 32000,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 4096 * 32,
            "rms_norm_eps": 1e-6,
            "sliding_window": 4096,
        }),
    ),
    "qwen2": FamilyDefaults(
        "Qwen2ForCausalLM",
        MappingProxyType({
            **COMMON,
            "vocab_size": 151936,
            "intermediate_size": 22016,
            "num_key_value_heads": 32,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
            "bos_token_id": None,
            "eos_token_id": None,
        }),
    ),
    "qwen3": FamilyDefaults(
        "Qwen3ForCausalLM",
        MappingProxyType({
            **COMMON,
            "vocab_size": 151936,
            "intermediate_size": 22016,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
            "bos_token_id": None,
            "eos_token_id": None,
        }),
    ),
    "granite": FamilyDefaults(
        "GraniteForCausalLM",
        MappingProxyType({
            **LLAMA,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "attention_multiplier": 1.0,
            "logits_scaling": 1.0,
        }),
    ),
    "phi3": FamilyDefaults(
        "Phi3ForCausalLM",
        MappingProxyType({
            **COMMON,
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_key_value_heads": None,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
            "eos_token_id": 32000,
            "pad_token_id": 32000,
        }),
        rope_kinds=frozenset({"default", "longrope"}),
        has_partial_rotary=True,
        old_rope_kinds=MappingProxyType({"su": "longrope", "yarn": "longrope"}),
    ),
    "olmo": FamilyDefaults(
        "OlmoForCausalLM",
        MappingProxyType({
            **COMMON,
            "vocab_size": 50304,
            "intermediate_size": 11008,
            "num_key_value_heads": None,
            "max_position_embeddings": 2048,
            "attention_bias": False,
            "clip_qkv": None,
            "pad_token_id": 1,
            "bos_token_id": None,
            "eos_token_id": 50279,
        }),
    ),
    "olmo2": FamilyDefaults("Olmo2ForCausalLM", OLMO2),
    "olmo3": FamilyDefaults("Olmo3ForCausalLM", MappingProxyType({**OLMO2, "sliding_window": 4096})),
    "smollm3": FamilyDefaults(
        "SmolLM3ForCausalLM",
        MappingProxyType({
            **LLAMA,
            "vocab_size": 128256,
            "hidden_size": 2048,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "rope_theta": 2000000.0,
            "use_sliding_window": False,
            "sliding_window": None,
            "no_rope_layer_interval": 4,
            "tie_word_embeddings": True,
            "pad_token_id": 128004,
            "bos_token_id": 128000,
            "eos_token_id": 128001,
        }),
    ),
    "cohere": FamilyDefaults(
        "CohereForCausalLM", MappingProxyType({**COHERE, "use_qk_norm": False, "rope_theta": 500000.0})
    ),
    "cohere2": FamilyDefaults(
        "Cohere2ForCausalLM", MappingProxyType({**COHERE, "head_dim": 128, "sliding_window": 4096})
    ),
    "glm": FamilyDefaults("GlmForCausalLM", GLM, has_partial_rotary=True, partial_rotary_factor=0.5),
    "glm4": FamilyDefaults("Glm4ForCausalLM", GLM, has_partial_rotary=True, partial_rotary_factor=0.5),
    "stablelm": FamilyDefaults(
        "StableLmForCausalLM",
        MappingProxyType({
            **COMMON,
            "vocab_size": 50304,
            "hidden_size": 2560,
            "intermediate_size": 6912,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "layer_norm_eps": 1e-5,
            "use_qkv_bias": False,
            "qk_layernorm": False,
            "use_parallel_residual": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }),
        has_partial_rotary=True,
        partial_rotary_factor=0.25,
    ),
    "helium": FamilyDefaults(
        "HeliumForCausalLM",
        MappingProxyType({
            **LLAMA,
            "vocab_size": 48000,
            "hidden_size": 2560,
            "intermediate_size": 7040,
            "num_hidden_layers": 24,
            "num_attention_heads": 20,
            "num_key_value_heads": 20,
            "head_dim": 128,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-8,
            "rope_theta": 100000.0,
            "pad_token_id": 3,
        }),
    ),
    "exaone4": FamilyDefaults(
        "Exaone4ForCausalLM",
        MappingProxyType({
            **COMMON,
            "vocab_size": 102400,
            "intermediate_size": 16384,
            "num_key_value_heads": 32,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
            "bos_token_id": 0,
        }),
    ),
    "exaone": FamilyDefaults(
        "ExaoneForCausalLM",
        MappingProxyType({
            **LLAMA,
            "vocab_size": 102400,
            "intermediate_size": 16384,
            "rms_norm_eps": 1e-5,
            "bos_token_id": 0,
        }),
        aliases=MappingProxyType({
            "num_layers": "num_hidden_layers",
            "layer_norm_epsilon": "rms_norm_eps",
            "activation_function": "hidden_act",
        }),
    ),
    "internlm": FamilyDefaults(
        "InternLMForCausalLM",
        MappingProxyType({**LLAMA, "vocab_size": 103168, "attention_bias": True}),
        aliases=MappingProxyType({"bias": "attention_bias"}),
    ),
    "internlm2": FamilyDefaults(
        "InternLM2ForCausalLM",
        MappingProxyType({**LLAMA, "vocab_size": 103168}),
        aliases=MappingProxyType({"bias": "attention_bias"}),
    ),
    "internlm3": FamilyDefaults(
        "InternLM3ForCausalLM",
        MappingProxyType({**LLAMA, "vocab_size": 128512, "num_key_value_heads": 32, "max_position_embeddings": 32768}),
        aliases=MappingProxyType({"bias": "mlp_bias", "qkv_bias": "attention_bias"}),
    ),
    "minicpm": FamilyDefaults(
        "MiniCPMForCausalLM",
        MappingProxyType({
            **LLAMA,
            "scale_emb": 1,
            "scale_depth": 1,
            "dim_model_base": 1,
            "tie_word_embeddings": True,
        }),
    ),
    "baichuan": FamilyDefaults(
        "BaichuanForCausalLM",
        MappingProxyType({**LLAMA, "vocab_size": 64000, "max_position_embeddings": 4096}),
        aliases=MappingProxyType({"model_max_length": "max_position_embeddings"}),
        other_architectures=("BaiChuanForCausalLM",),
    ),
    "orion": FamilyDefaults(
        "OrionForCausalLM",
        MappingProxyType({
            **{key: value for key, value in LLAMA.items() if key != "rms_norm_eps"},
            "vocab_size": 84608,
            "intermediate_size": 15360,
            "hidden_size": 5120,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "max_position_embeddings": 4096,
            "layer_norm_eps": 1e-5,
        }),
        aliases=MappingProxyType({"rms_norm_eps": "layer_norm_eps"}),
    ),
    "gemma": FamilyDefaults(
        "GemmaForCausalLM",
        MappingProxyType({
            **GEMMA,
            "hidden_size": 3072,
            "intermediate_size": 24576,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "hidden_act": "gelu_pytorch_tanh",
        }),
    ),
    "gemma2": FamilyDefaults(
        "Gemma2ForCausalLM",
        MappingProxyType({**GEMMA_2, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
    ),
    "gemma3_text": FamilyDefaults(
        "Gemma3ForCausalLM",
        MappingProxyType({
            **GEMMA_2,
            "vocab_size": 262208,
            "max_position_embeddings": 131072,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
        }),
        has_local_rope=True,
    ),
    "seed_oss": FamilyDefaults(
        "SeedOssForCausalLM",
        MappingProxyType({
            **LLAMA,
            "vocab_size": 155136,
            "intermediate_size": 27648,
            "num_hidden_layers": 64,
            "num_attention_heads": 80,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 524288,
            "attention_bias": True,
            "attention_out_bias": False,
            "pad_token_id": 1,
            "bos_token_id": 0,
        }),
    ),
    "ernie4_5": FamilyDefaults(
        "Ernie4_5ForCausalLM",
        MappingProxyType({
            **COMMON,
            "vocab_size": 103424,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 18,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "use_bias": False,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
        }),
    ),
})
"""Defaults by `model_type`."""
