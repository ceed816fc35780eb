"""Tiny random checkpoints of every family, as Hugging Face directories and as GGUF files.

Everything follows from a configuration and a seed. Sizes are small but awkward: nine heads over three KV heads, heads
that do not divide the hidden size, odd widths. GGUF files are written as converters write them: rows of Q and K in
pairs for Llama's kind, factors of rotary scaling as tensors, names and keys of the format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from support.random_blocks import random_weight

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]
Blocks = dict[str, tuple[Array, str]]
"""Blocks (uint8 `[rows, row_bytes]`) and their format, by tensor."""

FAMILIES = ("llama", "mistral", "qwen2", "granite", "phi3", "olmo")
ROPE_KINDS = ("none", "llama3", "longrope", "linear", "dynamic", "yarn")
ORIGINAL_LENGTH = 24
LENGTH = 96
WINDOW = 11

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "granite": "GraniteForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "olmo": "OlmoForCausalLM",
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
_OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 1,
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
            return {"type": "linear", "factor": stretch}
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

    def matrix(name: str, rows: int, cols: int, gain: float = 1.0) -> None:
        found[f"{name}.weight"] = (random.standard_normal((rows, cols)) * gain * cols**-0.5).astype(np.float32)

    def vector(name: str, count: int, centre: float = 0.0) -> None:
        found[name] = (centre + 0.2 * random.standard_normal(count)).astype(np.float32)

    def norm(name: str) -> None:
        if family != "olmo":
            vector(f"{name}.weight", hidden, 1.0)

    matrix("model.embed_tokens", config["vocab_size"], hidden, hidden**0.5 * 0.3)
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}"
        norm(f"{base}.input_layernorm")
        norm(f"{base}.post_attention_layernorm")
        if family == "phi3":
            matrix(f"{base}.self_attn.qkv_proj", (heads + 2 * kv_heads) * size, hidden, 1.5)
            matrix(f"{base}.mlp.gate_up_proj", 2 * width, hidden)
        else:
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
                matrix(f"{base}.self_attn.{name}_proj", count * size, hidden, 1.5)
                if family == "qwen2" or config.get("attention_bias"):
                    vector(f"{base}.self_attn.{name}_proj.bias", count * size)
            matrix(f"{base}.mlp.gate_proj", width, hidden)
            matrix(f"{base}.mlp.up_proj", width, hidden)
        matrix(f"{base}.self_attn.o_proj", hidden, heads * size)
        if config.get("attention_bias"):
            vector(f"{base}.self_attn.o_proj.bias", hidden)
        matrix(f"{base}.mlp.down_proj", hidden, width)
        if config.get("mlp_bias"):
            vector(f"{base}.mlp.gate_proj.bias", width)
            vector(f"{base}.mlp.up_proj.bias", width)
            vector(f"{base}.mlp.down_proj.bias", hidden)
    norm("model.norm")
    if not config["tie_word_embeddings"]:
        matrix("lm_head", config["vocab_size"], hidden)
    return found


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


_GGUF_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GGUF_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_GGUF_ARCHITECTURE = {"mistral": "llama"}
_PERMUTED = ("llama", "mistral", "granite", "olmo")
_PLAIN = {"F32": np.float32, "F16": np.float16}


def gguf_name(name: str) -> str:
    """The name in a GGUF file of a tensor of a Hugging Face checkpoint."""
    stem, _, kind = name.rpartition(".")
    if stem in _GGUF_TOP:
        return f"{_GGUF_TOP[stem]}.{kind}"
    _, _, layer, module = stem.split(".", 3)
    return f"blk.{layer}.{_GGUF_LAYER[module]}.{kind}"


def paired_rows(values: Array, heads: int) -> Array:
    """Rows of each head from two halves to pairs of neighbours: row 2j is row j, row 2j+1 is row j + D/2."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def write_gguf(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Array],
    *,
    encoding: str = "F32",
    blocks: Blocks | None = None,
    tensors_per_file: int = 0,
) -> Path:
    """A GGUF file of the same model.

    Args:
        path: The file.
        config: As of the directory; dynamic scaling has no form in GGUF.
        tensors: By Hugging Face name.
        encoding: How matrices are stored: `F32`, `F16`, `BF16`, or a block format that the `gguf` package can write.
            Vectors are always F32.
        blocks: Blocks (uint8 `[rows, row_bytes]`) and format of some tensors, by Hugging Face name, for formats that it
            cannot write; rows in the order of the directory.
        tensors_per_file: Most tensors of a file of a split set; 0: one file.

    Returns:
        The file, of a split set the first.
    """
    family = config["model_type"]
    writer = gguf.GGUFWriter(path, _GGUF_ARCHITECTURE.get(family, family), split_max_tensors=tensors_per_file)
    _write_metadata(writer, config)
    for name, values in _rope_tensors(config).items():
        writer.add_tensor(name, values)
    for name, values in tensors.items():
        kind, stored = (blocks or {}).get(name, (None, None))[::-1]
        rows = values if stored is None else stored
        if family in _PERMUTED and ".self_attn." in name and (".q_proj." in name or ".k_proj." in name):
            rows = paired_rows(rows, config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"])
        kind = kind or (encoding if values.ndim > 1 else "F32")
        if stored is None and kind not in _PLAIN:
            rows = gguf.quants.quantize(np.ascontiguousarray(rows), gguf.GGMLQuantizationType[kind])
        elif stored is None:
            rows = rows.astype(_PLAIN[kind])
        raw_dtype = None if kind in _PLAIN else gguf.GGMLQuantizationType[kind]
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(rows), raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if path.exists() else next(iter(sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))))


def dequantized(tensors: Mapping[str, Array], encoding: str) -> Tensors:
    """What a file of `write_gguf` with this encoding holds, as float32."""
    if encoding in _PLAIN:
        return {n: v.astype(_PLAIN[encoding]).astype(np.float32) if v.ndim > 1 else v for n, v in tensors.items()}
    kind = gguf.GGMLQuantizationType[encoding]
    return {
        name: gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind) if values.ndim > 1 else values
        for name, values in tensors.items()
    }


def random_blocks(tensors: Mapping[str, Array], encoding: str, seed: int = 0) -> tuple[Tensors, Blocks]:
    """The tensors with random blocks for matrices, as float32, and the blocks, in any format with known fields."""
    kind, random = gguf.GGMLQuantizationType[encoding], np.random.default_rng(seed)
    values, blocks = dict(tensors), {}
    for name, tensor in tensors.items():
        if tensor.ndim > 1:
            stored = random_weight(random, name, encoding, *tensor.shape).data
            blocks[name] = (stored, encoding)
            values[name] = gguf.quants.dequantize(stored, kind)
    return values, blocks


def _write_metadata(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    family = config["model_type"]
    writer.add_name("random decoder")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(rotated_elements(config))
    writer.add_vocab_size(config["vocab_size"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if family == "olmo":
        writer.add_layer_norm_eps(1e-5)
        writer.add_clamp_kqv(config["clip_qkv"])
    else:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if family == "granite":
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
    if family in ("mistral", "phi3"):
        writer.add_sliding_window(config.get("sliding_window", 0))
    _write_scaling(writer, config)
    _write_tokenizer(writer, config["vocab_size"])


def _write_scaling(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    original = config.get("original_max_position_embeddings") or scaling.get("original_max_position_embeddings")
    if config["model_type"] == "phi3":
        writer.add_rope_scaling_orig_ctx_len(original)
    if kind == "longrope":
        stretch = config["max_position_embeddings"] / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(stretch) / math.log(original)))
        if config["model_type"] != "phi3":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
            writer.add_rope_scaling_orig_ctx_len(original)
    elif kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(scaling["factor"])
        if kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
            writer.add_rope_scaling_yarn_beta_fast(scaling["beta_fast"])
            writer.add_rope_scaling_yarn_beta_slow(scaling["beta_slow"])
    elif kind == "dynamic":
        raise ValueError("dynamic scaling has no form in GGUF")


def _rope_tensors(config: Mapping[str, Any]) -> Tensors:
    scaling = config.get("rope_scaling") or {}
    match scaling.get("rope_type", scaling.get("type")):
        case "longrope":
            return {
                f"rope_factors_{name}.weight": np.array(scaling[f"{name}_factor"], np.float32)
                for name in ("long", "short")
            }
        case "llama3":
            return {"rope_freqs.weight": _llama3_factors(config, scaling)}
    return {}


def _llama3_factors(config: Mapping[str, Any], scaling: Mapping[str, Any]) -> Array:
    """Divisors of the frequencies, as converters bake them into the file."""
    rotated = rotated_elements(config)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    factors = []
    for element in range(0, rotated, 2):
        wavelength = 2 * math.pi * config["rope_theta"] ** (element / rotated)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def _write_tokenizer(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    """Single letters and made-up words: enough for a file to be complete."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = ["<s>", "</s>", *letters, *(f"word{index}" for index in range(vocab_size))][:vocab_size]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (vocab_size - 2)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
