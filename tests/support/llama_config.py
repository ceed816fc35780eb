"""Small Llama configurations for tests that need no files."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from puna.graph.weights import WeightData
from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.lib import KVCacheConfig, MAXModelConfig, PipelineConfig, PipelineRuntimeConfig

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}

KNOBS: dict[str, dict[str, Any]] = {
    "plain": {},
    "other size": {"hidden_size": 48, "intermediate_size": 40},
    "heads not grouped": {"num_key_value_heads": 4},
    "one kv head": {"num_key_value_heads": 1},
    "head size apart": {"head_dim": 16},
    "score scale": {"attention_multiplier": 0.015625},
    "embedding scale": {"embedding_multiplier": 12.0},
    "residual scale": {"residual_multiplier": 0.22},
    "logits divisor": {"logits_scaling": 8.0},
    "clamp": {"clip_qkv": 0.4},
    "tied": {"tie_word_embeddings": True},
    "tied and scaled": {"tie_word_embeddings": True, "embedding_multiplier": 12.0, "logits_scaling": 8.0},
    "base": {"rope_theta": 100.0},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "llama3": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
}
"""Changes of the tiny configuration, one knob each."""


def hf_config(*, without: tuple[str, ...] = (), **changes: Any) -> SimpleNamespace:
    """A tiny configuration with some keys changed and some left out."""
    values = {**TINY, **changes}
    return SimpleNamespace(**{key: value for key, value in values.items() if key not in without})


def model_config(config: Any = None, **options: Any) -> MAXModelConfig:
    """Options of a model that has no files."""
    made = MAXModelConfig(**{"quantization_encoding": "float32", "kv_cache": KVCacheConfig(), **options})
    made.huggingface_config = config if config is not None else hf_config()
    return made


def pipeline_config(config: Any = None, *, model: MAXModelConfig | None = None, **options: Any) -> PipelineConfig:
    """A pipeline's options around `model_config`; nothing is resolved."""
    runtime = PipelineRuntimeConfig(defer_resolve=True, max_batch_size=8)
    return PipelineConfig(**{"model": model or model_config(config), "runtime": runtime, **options})


def llama_config(config: Any = None, **options: Any) -> Llama3Config:
    """`Llama3Config.initialize` on a tiny configuration."""
    return Llama3Config.initialize(pipeline_config(config, **options))


def weight(*shape: int, dtype: Any = np.float32) -> WeightData:
    """A weight of zeros."""
    return WeightData.from_numpy(np.zeros(shape, dtype=dtype), "w")


def random_weights(config: Llama3Config, seed: int = 0) -> dict[str, WeightData]:
    """Seeded float32 weights by internal name, for the layout that the fields of `config` describe."""
    rng = np.random.default_rng(seed)
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    h, f = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (config.vocab_size, h)}
    for layer in range(config.num_hidden_layers):
        attention, mlp = f"layers.{layer}.self_attn", f"layers.{layer}.mlp"
        rows = {"q_proj": heads * size, "k_proj": kv_heads * size, "v_proj": kv_heads * size}
        if config.stacked_qkv:
            rows = {"qkv_proj": sum(rows.values())}
        for name, count in rows.items():
            shapes[f"{attention}.{name}.weight"] = (count, h)
            if config.attention_bias:
                shapes[f"{attention}.{name}.bias"] = (count,)
        shapes[f"{attention}.o_proj.weight"] = (h, heads * size)
        gates = {"gate_up_proj": 2 * f} if config.stacked_mlp else {"gate_proj": f, "up_proj": f}
        shapes |= {f"{mlp}.{name}.weight": (count, h) for name, count in gates.items()}
        shapes[f"{mlp}.down_proj.weight"] = (h, f)
        if config.norm_method == "rms_norm":
            shapes[f"layers.{layer}.input_layernorm.weight"] = (h,)
            shapes[f"layers.{layer}.post_attention_layernorm.weight"] = (h,)
    if config.norm_method == "rms_norm":
        shapes["norm.weight"] = (h,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, h)
    weights: dict[str, WeightData] = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape) * (0.5 if len(shape) == 1 else shape[-1] ** -0.5)
        offset = 1.0 if "norm" in name else 0.0
        weights[name] = WeightData.from_numpy((values + offset).astype(np.float32), name)
    return weights
