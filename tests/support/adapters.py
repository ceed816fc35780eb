"""Adapters on disk, in PEFT's layout and in llama.cpp's, with seeded numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from puna.graph.weights import WeightsFormat
from puna.pipelines.architectures.llama3.weight_adapters import gguf_state_dict, safetensors_state_dict
from puna.pipelines.lora import ModelProducts
from support.tiny_model import CONFIG

Array = NDArray[Any]
Pair = tuple[Array, Array]
PRODUCTS = ModelProducts(  # of the model of support.tiny_model
    num_layers=2,
    hidden_size=64,
    intermediate_size=96,
    vocab_size=900,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    is_interleaved=False,
    interleaved_in={WeightsFormat.safetensors: False, WeightsFormat.gguf: True},
    weight_adapters={WeightsFormat.safetensors: safetensors_state_dict, WeightsFormat.gguf: gguf_state_dict},
    huggingface_config=CONFIG,
    gguf_architectures=("llama",),
)


def random_pairs(
    shapes: Mapping[str, tuple[int, int]], rank: int, seed: int, dtype: Any = np.float32
) -> dict[str, Pair]:
    """A `[rank, inputs]` and B `[outputs, rank]` for modules of these outputs and inputs."""
    draw = np.random.default_rng(seed)
    pairs = {}
    for name, (outputs, inputs) in shapes.items():
        a = draw.standard_normal((rank, inputs)) * inputs**-0.5
        pairs[name] = (a.astype(dtype), draw.standard_normal((outputs, rank)).astype(dtype))
    return pairs


def module_shapes(
    config: Mapping[str, Any], names: Sequence[str], layers: Sequence[int] | None = None
) -> dict[str, Any]:
    """Outputs and inputs of modules of a Llama checkpoint by full name, for names as `q_proj`."""
    hidden, feed = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    width, kv_width = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    sizes = {
        "self_attn.q_proj": (width, hidden),
        "self_attn.k_proj": (kv_width, hidden),
        "self_attn.v_proj": (kv_width, hidden),
        "self_attn.qkv_proj": (width + 2 * kv_width, hidden),
        "self_attn.o_proj": (hidden, width),
        "mlp.gate_proj": (feed, hidden),
        "mlp.up_proj": (feed, hidden),
        "mlp.gate_up_proj": (2 * feed, hidden),
        "mlp.down_proj": (hidden, feed),
    }
    found = {
        f"model.layers.{layer}.{name}": shape
        for layer in (range(config["num_hidden_layers"]) if layers is None else layers)
        for name, shape in sizes.items()
        if name.split(".")[1] in names
    }
    if "lm_head" in names:
        found["lm_head"] = (config["vocab_size"], hidden)
    return found


def write_peft(directory: Path, pairs: Mapping[str, Pair], embedding: Pair | None = None, **changes: Any) -> Path:
    """Writes an adapter and returns its directory. `changes` go into adapter_config.json; None removes a key."""
    directory.mkdir(parents=True, exist_ok=True)
    rank = next(iter(pairs.values()))[0].shape[0] if pairs else embedding[0].shape[0] if embedding else 1
    names = sorted({name.rsplit(".", 1)[-1] for name in pairs} | ({"embed_tokens"} if embedding else set()))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_dropout": 0.0,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": names,
    }
    config = {key: value for key, value in (config | changes).items() if value is not None}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for name, (a, b) in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = np.ascontiguousarray(a)
        tensors[f"base_model.model.{name}.lora_B.weight"] = np.ascontiguousarray(b)
    if embedding is not None:
        tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = embedding[0]
        tensors["base_model.model.model.embed_tokens.lora_embedding_B"] = embedding[1]
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def write_gguf_adapter(path: Path, pairs: Mapping[str, Pair], alpha: float, **changes: Any) -> Path:
    """Writes an adapter for modules by their names in GGUF files, as `blk.0.attn_q`; `changes` replace metadata."""
    writer = gguf.GGUFWriter(path, changes.get("architecture", "llama"))
    writer.add_string("general.type", changes.get("type", "adapter"))
    writer.add_string("adapter.type", changes.get("adapter_type", "lora"))
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, (a, b) in pairs.items():
        writer.add_tensor(f"{name}.weight.lora_a", np.ascontiguousarray(a))
        writer.add_tensor(f"{name}.weight.lora_b", np.ascontiguousarray(b))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
