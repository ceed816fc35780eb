"""Tiny random checkpoints of every family, as directories in Hugging Face layout.

Everything follows from a configuration and a seed. Sizes are small but awkward: nine heads over three KV heads, heads
that do not divide the hidden size, odd widths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from support.other_names import llama_names, own_names

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]

FAMILIES = (
    "llama",
    "mistral",
    "ministral",
    "qwen2",
    "qwen3",
    "granite",
    "phi3",
    "olmo",
    "olmo2",
    "olmo3",
    "smollm3",
    "cohere",
    "cohere2",
    "glm",
    "glm4",
    "stablelm",
    "helium",
    "exaone4",
    "exaone",
    "internlm",
    "internlm2",
    "internlm3",
    "minicpm",
    "baichuan",
    "orion",
    "gemma",
    "gemma2",
    "gemma3_text",
    "ernie4_5",
    "seed_oss",
)
GEMMAS = ("gemma", "gemma2", "gemma3_text")
# Not in transformers: these are compared with one of its classes on rearranged tensors.
REARRANGED = ("exaone", "internlm", "internlm2", "internlm3", "minicpm", "baichuan", "orion")
# llama.cpp converts none, or to Llama; GGUF has no key for windows of some layers
WITHOUT_GGUF = ("helium", "internlm", "internlm3", "ministral")
GGUF_FAMILIES = tuple(family for family in FAMILIES if family not in WITHOUT_GGUF)
ROPE_KINDS = ("none", "llama3", "longrope", "linear", "dynamic", "yarn")
# Kinds of rotary scaling that a family's logits are compared under: all of them take one path, which Llama proves.
ROPES_OF = {
    "llama": ROPE_KINDS,
    "phi3": ("none", "longrope"),
    **dict.fromkeys(("olmo3", "glm", "glm4", "stablelm", "orion"), ("none",)),
    **dict.fromkeys(("internlm", "internlm2"), ("none", "dynamic")),
    "exaone": ("none", "llama3"),
    "minicpm": ("none", "longrope"),
    "gemma3_text": ("none", "linear"),
}
ROPE_CASES = [(family, rope) for family in FAMILIES for rope in ROPES_OF.get(family, ("none", "yarn"))]
ORIGINAL_LENGTH = 24
LENGTH = 96
WINDOW = 11

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "ministral": "MinistralForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "granite": "GraniteForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "olmo": "OlmoForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "cohere": "CohereForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "helium": "HeliumForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "exaone": "ExaoneForCausalLM",
    "internlm": "InternLMForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
    "internlm3": "InternLM3ForCausalLM",
    "minicpm": "MiniCPMForCausalLM",
    "baichuan": "BaichuanForCausalLM",
    "orion": "OrionForCausalLM",
    "gemma": "GemmaForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
_COMMON: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 10,
    "max_position_embeddings": LENGTH,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
_SIX_HEADS: dict[str, Any] = {"num_attention_heads": 6, "num_key_value_heads": 2}
_OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "ministral": {
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "seed_oss": {"attention_bias": True, "attention_out_bias": False},
    "qwen2": {
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 1,
    },
    "qwen3": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "smollm3": {"num_hidden_layers": 5},
    "cohere": {
        "logit_scale": 0.25,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "head_dim": None,
        **_SIX_HEADS,
    },
    "cohere2": {
        "logit_scale": 0.25,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "sliding_window": WINDOW,
        "num_hidden_layers": 5,
    },
    "glm": {"partial_rotary_factor": 0.5, "head_dim": 12, "attention_bias": True},
    "glm4": {"partial_rotary_factor": 0.5, "head_dim": 12, "attention_bias": True},
    "stablelm": {
        "partial_rotary_factor": 0.5,
        "layer_norm_eps": 1e-5,
        "use_qkv_bias": True,
        "head_dim": None,
        **_SIX_HEADS,
    },
    "helium": {"head_dim": 8},
    "exaone": {},
    "internlm": {"bias": True, "num_key_value_heads": 9, "head_dim": None},
    "internlm2": {"bias": False, "head_dim": None},
    "internlm3": {"bias": False, "qkv_bias": True},
    "minicpm": {
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 18,
        "tie_word_embeddings": True,
        "head_dim": None,
    },
    "baichuan": {"num_key_value_heads": 9, "head_dim": None},
    "orion": {"head_dim": None},
    "gemma": {"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True},
    "ernie4_5": {"tie_word_embeddings": True, "use_bias": True},
    "gemma2": {
        "hidden_act": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 10,
        "sliding_window": WINDOW,
        "num_hidden_layers": 4,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {
        "hidden_act": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 10,
        "sliding_window": WINDOW,
        "num_hidden_layers": 7,
        "rope_theta": 20000.0,
        "rope_local_base_freq": 500.0,
        "final_logit_softcapping": 3.0,
    },
    "exaone4": {"sliding_window": WINDOW, "sliding_window_pattern": 4, "num_hidden_layers": 5},
    "olmo2": {"head_dim": None, **_SIX_HEADS},
    "olmo3": {
        "head_dim": None,
        **_SIX_HEADS,
        "sliding_window": WINDOW,
        "num_hidden_layers": 5,
    },
    "granite": {
        "tie_word_embeddings": True,
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
        "attention_bias": False,
    },
    "phi3": {
        "hidden_size": 96,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": None,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": ORIGINAL_LENGTH,
        "sliding_window": 31,
    },
    "olmo": {"clip_qkv": 1.2, "num_key_value_heads": 9, "head_dim": None},
}
_SANDWICH = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
_QK_NORMS = {"qwen3": "head", "gemma3_text": "head", "exaone4": "head", "olmo2": "row", "olmo3": "row"}
# Norms of a layer, where they are not Llama's two.
_NORMS = {
    **dict.fromkeys(("olmo2", "olmo3", "exaone4"), ("post_attention_layernorm", "post_feedforward_layernorm")),
    **dict.fromkeys(("cohere", "cohere2"), ("input_layernorm",)),
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
    "glm4": ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
}
_QKV_BIAS = ("attention_bias", "use_qkv_bias", "qkv_bias", "bias", "use_bias")
_STACKED_MLP = ("phi3", "glm", "glm4")
EXAONE_KEYS = {
    "num_hidden_layers": "num_layers",
    "rms_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
}
# Sizes that block formats can hold: rows of 32 or of 256 elements.
BLOCK_32 = {
    "vocab_size": 160,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 32,
}
BLOCK_256 = {
    "vocab_size": 160,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


def tiny_config(family: str, rope: str = "none", **changes: Any) -> dict[str, Any]:
    """A `config.json`. `None` as a change leaves the key out."""
    config = {
        "architectures": [_ARCHITECTURES[family]],
        "model_type": family,
        **_COMMON,
        **_OWN[family],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        **changes,
    }
    config = {key: value for key, value in config.items() if value is not None}
    if family == "exaone":
        for ours, theirs in EXAONE_KEYS.items():
            config[theirs] = config.pop(ours)
    scaling = rope_section(rope, rotated_elements(config))
    if rope == "longrope" and "original_max_position_embeddings" not in config:
        assert scaling is not None
        scaling["original_max_position_embeddings"] = ORIGINAL_LENGTH
    if rope == "dynamic":
        config["max_position_embeddings"] = ORIGINAL_LENGTH
    if scaling is not None:
        config["rope_scaling"] = scaling
    return config


def rope_section(rope: str, rotated: int) -> dict[str, Any] | None:
    """A `rope_scaling` that stretches `ORIGINAL_LENGTH` to `LENGTH`."""
    pairs, stretch = rotated // 2, LENGTH / ORIGINAL_LENGTH
    match rope:
        case "none":
            return None
        case "llama3":
            # wavelengths on both sides of the two borders and between them
            return {
                "rope_type": "llama3",
                "factor": stretch,
                "low_freq_factor": 0.5,
                "high_freq_factor": 2.0,
                "original_max_position_embeddings": ORIGINAL_LENGTH,
            }
        case "longrope":
            return {
                "type": "longrope",
                "short_factor": [1.0 + 0.07 * pair for pair in range(pairs)],
                "long_factor": [1.1 + 0.9 * pair for pair in range(pairs)],
            }
        case "linear":
            return {"rope_type": "linear", "factor": stretch}
        case "dynamic":
            return {"rope_type": "dynamic", "factor": 2.0}
        case "yarn":
            return {
                "rope_type": "yarn",
                "factor": stretch,
                "beta_fast": 3.0,
                "beta_slow": 0.5,
                "original_max_position_embeddings": ORIGINAL_LENGTH,
            }
    raise ValueError(rope)


def head_size(config: Mapping[str, Any]) -> int:
    """Elements of a head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def rotated_elements(config: Mapping[str, Any]) -> int:
    """Elements of a head that are rotated."""
    return int(head_size(config) * config.get("partial_rotary_factor", 1.0))


def tiny_tensors(config: Mapping[str, Any], seed: int = 0) -> Tensors:
    """Float32 weights by the names of the Hugging Face checkpoint. Scores are large enough to make attention pick."""
    random = np.random.default_rng(seed)
    family, hidden, size = config["model_type"], config["hidden_size"], head_size(config)
    heads, kv_heads, width = config["num_attention_heads"], config["num_key_value_heads"], config["intermediate_size"]
    found: Tensors = {}

    centre = 0.0 if family.startswith("gemma") else 1.0  # of norms: Gemma's are 1 + weight

    def matrix(name: str, rows: int, cols: int, gain: float = 1.0) -> None:
        found[f"{name}.weight"] = (random.standard_normal((rows, cols)) * gain * cols**-0.5).astype(np.float32)

    def vector(name: str, count: int, centre: float = 0.0) -> None:
        found[name] = (centre + 0.2 * random.standard_normal(count)).astype(np.float32)

    def norm(name: str) -> None:
        if family != "olmo":
            vector(f"{name}.weight", hidden, centre)
        if family in ("stablelm", "orion"):
            vector(f"{name}.bias", hidden)

    matrix("model.embed_tokens", config["vocab_size"], hidden, hidden**0.5 * 0.3)
    for layer in range(config.get("num_layers") or config["num_hidden_layers"]):
        base = f"model.layers.{layer}"
        for name in _NORMS.get(family, ("input_layernorm", "post_attention_layernorm")):
            norm(f"{base}.{name}")
        if family in _QK_NORMS:
            for name, count in (("q", heads), ("k", kv_heads)):
                width_of_norm = size * (count if _QK_NORMS[family] == "row" else 1)
                vector(f"{base}.self_attn.{name}_norm.weight", width_of_norm, centre)
        if family == "phi3":
            matrix(f"{base}.self_attn.qkv_proj", (heads + 2 * kv_heads) * size, hidden, 1.5)
        else:
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
                matrix(f"{base}.self_attn.{name}_proj", count * size, hidden, 1.5)
                if family == "qwen2" or any(config.get(key) for key in _QKV_BIAS):
                    vector(f"{base}.self_attn.{name}_proj.bias", count * size)
        if family in _STACKED_MLP:
            matrix(f"{base}.mlp.gate_up_proj", 2 * width, hidden)
        else:
            matrix(f"{base}.mlp.gate_proj", width, hidden)
            matrix(f"{base}.mlp.up_proj", width, hidden)
        matrix(f"{base}.self_attn.o_proj", hidden, heads * size)
        has_output_bias = config.get("attention_bias") and family not in ("glm", "glm4", "seed_oss")
        if has_output_bias or config.get("bias") or config.get("use_bias"):
            vector(f"{base}.self_attn.o_proj.bias", hidden)
        matrix(f"{base}.mlp.down_proj", hidden, width)
        if config.get("mlp_bias") or config.get("use_bias"):
            vector(f"{base}.mlp.gate_proj.bias", width)
            vector(f"{base}.mlp.up_proj.bias", width)
            vector(f"{base}.mlp.down_proj.bias", hidden)
    norm("model.norm")
    if not config["tie_word_embeddings"]:
        matrix("lm_head", config["vocab_size"], hidden)
    return own_names(config, found)


def rearranged(config: Mapping[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """A checkpoint of a class that transformers has, which computes the same as one of `REARRANGED`."""
    family, values = config["model_type"], dict(config)
    for ours, theirs in EXAONE_KEYS.items():
        if theirs in values:
            values[ours] = values.pop(theirs)
    target, changes = "llama", {}
    if family == "minicpm":
        target, changes = "granite", {
            "embedding_multiplier": config["scale_emb"],
            "residual_multiplier": config["scale_depth"] / config["num_hidden_layers"] ** 0.5,
            "logits_scaling": config["hidden_size"] / config["dim_model_base"],
            "attention_multiplier": head_size(config) ** -0.5,
        }
    elif family == "orion":
        target, changes = "stablelm", {"layer_norm_eps": config["rms_norm_eps"], "partial_rotary_factor": 1.0}
    named = llama_names(config, tensors)
    if target == "llama" and any(".q_proj.bias" in name for name in named):
        changes["attention_bias"] = True
        for layer in range(config["num_hidden_layers"]):
            o_bias = np.zeros(config["hidden_size"], np.float32)
            named.setdefault(f"model.layers.{layer}.self_attn.o_proj.bias", o_bias)
    return values | changes | {"model_type": target, "architectures": [_ARCHITECTURES[target]]}, named


def write_huggingface(
    directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Array], *, dtype: str = "float32", shards: int = 1
) -> Path:
    """A model directory: `config.json`, and weights in float32, bfloat16 or float16, in one file or in several."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**config, "torch_dtype": dtype}))
    target = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    stored = {name: np.ascontiguousarray(values.astype(target)) for name, values in tensors.items()}
    if shards == 1:
        save_file(stored, directory / "model.safetensors")
        return directory
    places: dict[str, str] = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: values for index, (key, values) in enumerate(stored.items()) if index % shards == shard}
        save_file(part, directory / name)
        places |= dict.fromkeys(part, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return directory
