"""The checkpoints of `support.checkpoints` as GGUF files, as converters write them.

Rows of Q and K lie in pairs for Llama's kind, factors of rotary scaling are tensors, names and keys are the format's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from support.checkpoints import EXAONE_KEYS, Array, Tensors, rotated_elements
from support.other_names import llama_names
from support.random_blocks import random_weight

Blocks = dict[str, tuple[Array, str]]
"""Blocks (uint8 `[rows, row_bytes]`) and their format, by tensor."""

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
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "post_self_attn_layernorm": "post_attention_norm",
    "post_mlp_layernorm": "post_ffw_norm",
    "pre_feedforward_layernorm": "ffn_norm",
}
_GGUF_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
GGUF_ARCHITECTURE = {
    "glm": "chatglm",
    "mistral": "llama",
    "olmo3": "olmo2",
    "cohere": "command-r",
    "gemma3_text": "gemma3",
}
EXAONE_KEYS_INVERSE = {theirs: ours for ours, theirs in EXAONE_KEYS.items()}
_PERMUTED = ("llama", "mistral", "granite", "olmo", "smollm3", "internlm2", "minicpm", "baichuan")
_POST_NORMED = ("olmo2", "olmo3", "exaone4", "gemma2", "gemma3_text")
_PLAIN = {"F32": np.float32, "F16": np.float16}


def gguf_name(name: str, family: str) -> str:
    """The name in a GGUF file of a tensor of a Hugging Face checkpoint."""
    stem, _, kind = name.rpartition(".")
    if stem in _GGUF_TOP:
        return f"{_GGUF_TOP[stem]}.{kind}"
    _, _, layer, module = stem.split(".", 3)
    if family in (*_POST_NORMED, "seed_oss") and module == "post_attention_layernorm":
        return f"blk.{layer}.post_attention_norm.{kind}"
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
    writer = gguf.GGUFWriter(path, GGUF_ARCHITECTURE.get(family, family), split_max_tensors=tensors_per_file)
    config = {EXAONE_KEYS_INVERSE.get(key, key): value for key, value in config.items()}
    tensors = llama_names(config, tensors)
    if family.startswith("gemma"):
        tensors = {name: values + 1 if "norm" in name else values for name, values in tensors.items()}
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
        writer.add_tensor(gguf_name(name, family), np.ascontiguousarray(rows), raw_dtype=raw_dtype)
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
    elif family == "orion":
        writer.add_layer_norm_eps(config["rms_norm_eps"])
    elif "layer_norm_eps" in config:
        writer.add_layer_norm_eps(config["layer_norm_eps"])
    else:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if family == "minicpm":
        writer.add_embedding_scale(config["scale_emb"])
        writer.add_residual_scale(config["scale_depth"] / config["num_hidden_layers"] ** 0.5)
        writer.add_logit_scale(config["hidden_size"] / config["dim_model_base"])
    if family == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if family in ("gemma2", "gemma3_text"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if family == "gemma3_text":
        writer.add_float32("gemma3.rope.freq_base_swa", config["rope_local_base_freq"])
    if "logit_scale" in config:
        writer.add_logit_scale(config["logit_scale"])
    if family == "granite":
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
    if family in ("mistral", "phi3", "olmo3", "cohere2", "exaone4", "gemma2", "gemma3_text"):
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
