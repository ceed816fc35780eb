"""Writes Llama checkpoints with random weights for measurements: real shapes, valid blocks, a tokenizer of real size.

    python benchmarks/synthetic.py Q4_K_M Q8_0          prints the paths of two files, written unless they exist
    python benchmarks/synthetic.py --size 8B Q4_K_M
    python benchmarks/synthetic.py safetensors          a directory: bfloat16, config.json, tokenizer.json

Speed does not depend on what weights say, so nothing is quantized: codes are random bytes, and scales make every
matrix keep the size of what it is multiplied with. Which tensor has which type follows llama.cpp's `Q4_K_M` and the
like, so the files have the sizes of real ones. They go into the user's cache ($XDG_CACHE_HOME/puna/benchmarks).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.constants import GGML_QUANT_SIZES

from environments import benchmarks_cache

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

VERSION: Final = 1  # of what is written; part of the files' names
ENCODINGS: Final = ("Q4_K_M", "Q4_0", "Q8_0", "BF16")
SAFETENSORS: Final = "safetensors"
SPECIAL_TOKENS: Final = 256
_NAMED_SPECIAL: Final = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
}
_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_UNIFORM_BYTE: Final = 73.9  # standard deviation of an even draw from -128 … 127
_UNIFORM_NIBBLE: Final = 4.61  # of 0 … 15
_UNIFORM_6_BIT: Final = 18.47  # of 0 … 63


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama model.

    Attributes:
        name: The model that has them.
        layers: Decoder layers.
        hidden: Width of the hidden state.
        heads: Query heads.
        kv_heads: Heads of keys and values.
        head_dim: Width of a head.
        inner: Width inside the feed-forward part.
        vocabulary: Tokens.
        is_tied: Whether the output matrix is the embedding.
        rope_factor: By how much the longest wave lengths are stretched (the rope type `llama3`).
        context: Most tokens.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    is_tied: bool
    rope_factor: float
    context: int = 131072


SHAPES: Final = {
    "1B": Shape("Llama-3.2-1B", 16, 2048, 32, 8, 64, 8192, 128256, True, 32.0),
    "8B": Shape("Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, 128256, False, 8.0),
}


def cached(size: str, encoding: str) -> Path:
    """The file of this size and encoding (`safetensors`: the directory) in the user's cache; written if missing."""
    shape = SHAPES[size]
    is_directory = encoding == SAFETENSORS
    path = benchmarks_cache() / f"{shape.name}-random-{VERSION}-{encoding}{'' if is_directory else '.gguf'}"
    if not path.exists():
        scratch = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            if is_directory:
                write_directory(scratch, shape)
            else:
                write(scratch, shape, encoding)
            scratch.rename(path)
        finally:
            if is_directory:
                shutil.rmtree(scratch, ignore_errors=True)
            else:
                scratch.unlink(missing_ok=True)
    return path


def write(path: Path, shape: Shape, encoding: str, seed: int = 0) -> None:
    """Writes a checkpoint.

    Args:
        path: Where to.
        shape: Its sizes.
        encoding: One of `ENCODINGS`.
        seed: Of the weights.
    """
    writer = GGUFWriter(path, "llama")
    _add_metadata(writer, shape, encoding)
    contents = list(tensors(shape, encoding))
    for name, rows, columns, kind in contents:
        block, size = GGML_QUANT_SIZES[kind]
        row_bytes = columns // block * size
        if rows == 1:
            writer.add_tensor_info(name, (columns,), np.dtype(np.float32), row_bytes, kind)
        else:
            writer.add_tensor_info(name, (rows, row_bytes), np.dtype(np.uint8), rows * row_bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    draw = np.random.Generator(np.random.SFC64(seed))
    for name, rows, columns, kind in contents:
        data: np.ndarray[Any, Any]
        if name == "rope_freqs.weight":
            data = rope_factors(shape)
        elif rows == 1:
            data = np.ones(columns, np.float32)
        else:
            data = random_blocks(draw, kind, rows * columns, _deviation(name, columns))
        writer.write_tensor_data(data)
    writer.close()


def write_directory(directory: Path, shape: Shape, seed: int = 0) -> None:
    """Writes a checkpoint in bfloat16 as Hugging Face lays it out: config.json, tokenizer.json, model.safetensors.

    Args:
        directory: Where to; it is made.
        shape: Its sizes.
        seed: Of the weights.
    """
    directory.mkdir()
    tokens, merges = _tokenizer(shape.vocabulary - SPECIAL_TOKENS)
    first = len(tokens)
    special = _special_tokens()
    scaling = {"rope_type": "llama3", "factor": shape.rope_factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": scaling | {"original_max_position_embeddings": 8192},
        "tie_word_embeddings": shape.is_tied,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": first,
        "eos_token_id": first + 9,
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": first + i, "content": token, **flags} for i, token in enumerate(special)]
    tokenizer = {"version": "1.0", "added_tokens": added, "pre_tokenizer": level, "decoder": level, "model": model}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    names = {"bos_token": special[0], "eos_token": special[9], "chat_template": _TEMPLATE}
    names["tokenizer_class"] = "PreTrainedTokenizerFast"
    (directory / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    _write_safetensors(directory / "model.safetensors", shape, seed)


def _write_safetensors(path: Path, shape: Shape, seed: int) -> None:
    """A header of JSON, and the bytes of the tensors one after the other."""
    header: dict[str, Any] = {}
    contents = [tensor for tensor in tensors(shape, "BF16") if tensor[0] != "rope_freqs.weight"]
    end = 0
    for name, rows, columns, _kind in contents:
        begin, end = end, end + 2 * rows * columns
        sizes = [columns] if rows == 1 else [rows, columns]
        header[_hugging_face_name(name)] = {"dtype": "BF16", "shape": sizes, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    draw = np.random.Generator(np.random.SFC64(seed))
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, rows, columns, _kind in contents:
            if rows == 1:
                file.write(np.full(columns, 0x3F80, "<u2").tobytes())  # 1.0
            else:
                data = random_blocks(draw, GGMLQuantizationType.BF16, rows * columns, _deviation(name, columns))
                file.write(data.data)


def _hugging_face_name(name: str) -> str:
    """Of a tensor that GGUF calls `name`."""
    outer = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    parts = name.removesuffix(".weight").split(".")
    if len(parts) == 1:
        return f"{outer[parts[0]]}.weight"
    inner = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    return f"model.layers.{parts[1]}.{inner[parts[2]]}.weight"


def random_blocks(draw: np.random.Generator, kind: GGMLQuantizationType, count: int, deviation: float) -> Bytes:
    """Valid blocks of `count` random values around 0.

    Args:
        draw: Random numbers.
        kind: BF16, Q4_0, Q8_0, Q4_K or Q6_K.
        count: Whole blocks.
        deviation: Standard deviation of the values, nearly.

    Returns:
        Their bytes, `[blocks, bytes of a block]`.
    """
    block, size = GGML_QUANT_SIZES[kind]
    words = draw.integers(0, 2**64, (count // block * size + 7) // 8, dtype=np.uint64)
    data = words.view(np.uint8)[: count // block * size].reshape(-1, size)
    if kind == GGMLQuantizationType.BF16:
        # Random signs and mantissas, and one of four exponents; the root of the mean square is 7.04 times the smallest.
        exponent = 127 + round(math.log2(deviation / 7.04))
        values = data.reshape(-1).view(np.uint16)
        values &= 0x81FF
        values += np.uint16(exponent << 7)
    elif kind == GGMLQuantizationType.Q8_0:
        codes = data[:, 2:].view(np.int8)
        np.maximum(codes, -127, out=codes)
        data[:, :2] = _half(deviation / _UNIFORM_BYTE)
    elif kind == GGMLQuantizationType.Q4_0:
        data[:, :2] = _half(deviation / _UNIFORM_NIBBLE)
    elif kind == GGMLQuantizationType.Q4_K:
        # Eight scales of 32 … 63 and the minima that centre the codes: d * s * q - 7.5 * d * s.
        scales = data[:, 4:12] & 31 | 32
        scale = deviation / (_UNIFORM_NIBBLE * 48)
        data[:, 0:2], data[:, 2:4] = _half(scale), _half(7.5 * scale)
        low, high = scales[:, :4], scales[:, 4:]
        packed = low | (high >> 4 << 6)
        data[:, 4:8] = data[:, 8:12] = packed
        data[:, 12:16] = (high & 15) | (high << 4)
    elif kind == GGMLQuantizationType.Q6_K:
        data[:, 192:208] = data[:, 192:208] & 63 | 32  # sixteen scales of 32 … 63
        data[:, 208:210] = _half(deviation / (_UNIFORM_6_BIT * 48))
    else:
        raise ValueError(f"no random blocks of {kind.name}")
    return data


def rope_factors(shape: Shape) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What each rotary frequency is divided by: 1 for short waves, `rope_factor` for long ones, blended between."""
    waves = 2 * math.pi * 500000.0 ** (np.arange(0, shape.head_dim, 2) / shape.head_dim)
    turns = 8192 / waves  # of the original context
    blend = np.clip((turns - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    return (1 / ((1 - blend) / shape.rope_factor + blend)).astype(np.float32)


def tensors(shape: Shape, encoding: str) -> Iterator[tuple[str, int, int, GGMLQuantizationType]]:
    """Names, rows (1: a vector), columns and types, in the order of the file."""
    types = GGMLQuantizationType
    f32 = types.F32
    base = types.Q4_K if encoding == "Q4_K_M" else types[encoding]
    output = types.Q6_K if base in (types.Q4_K, types.Q4_0) else base
    hidden, kv = shape.hidden, shape.kv_heads * shape.head_dim
    if not shape.is_tied:
        yield "output.weight", shape.vocabulary, hidden, output
    yield "token_embd.weight", shape.vocabulary, hidden, output if shape.is_tied else base
    yield "rope_freqs.weight", 1, shape.head_dim // 2, f32
    yield "output_norm.weight", 1, hidden, f32
    for layer in range(shape.layers):
        better = types.Q6_K if encoding == "Q4_K_M" and _gets_more_bits(layer, shape.layers) else base
        prefix = f"blk.{layer}"
        yield f"{prefix}.attn_norm.weight", 1, hidden, f32
        yield f"{prefix}.attn_q.weight", shape.heads * shape.head_dim, hidden, base
        yield f"{prefix}.attn_k.weight", kv, hidden, base
        yield f"{prefix}.attn_v.weight", kv, hidden, better
        yield f"{prefix}.attn_output.weight", hidden, shape.heads * shape.head_dim, base
        yield f"{prefix}.ffn_norm.weight", 1, hidden, f32
        yield f"{prefix}.ffn_gate.weight", shape.inner, hidden, base
        yield f"{prefix}.ffn_up.weight", shape.inner, hidden, base
        yield f"{prefix}.ffn_down.weight", hidden, shape.inner, better


def _deviation(name: str, columns: int) -> float:
    """Embeddings are small, as trained ones are; matrices keep the size of their input."""
    return 0.02 if name in ("token_embd.weight", "output.weight") else 1 / math.sqrt(columns)


def _gets_more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's rule for the layers of a `_M` mix: the first and the last eighth, and every third one between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _half(value: float) -> Bytes:
    return np.array([value], np.float16).view(np.uint8)


def _add_metadata(writer: GGUFWriter, shape: Shape, encoding: str) -> None:
    kinds = {"Q4_K_M": LlamaFileType.MOSTLY_Q4_K_M, "Q4_0": LlamaFileType.MOSTLY_Q4_0}
    kinds |= {"Q8_0": LlamaFileType.MOSTLY_Q8_0, "BF16": LlamaFileType.MOSTLY_BF16}
    writer.add_name(f"{shape.name} with random weights")
    writer.add_file_type(kinds[encoding])
    writer.add_quantization_version(2)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    tokens, merges = _tokenizer(shape.vocabulary - SPECIAL_TOKENS)
    first = len(tokens)
    tokens += _special_tokens()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * first + [TokenType.CONTROL] * SPECIAL_TOKENS)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(first)
    writer.add_eos_token_id(first + 9)
    writer.add_chat_template(_TEMPLATE)


def _special_tokens() -> list[str]:
    return [_NAMED_SPECIAL.get(i, f"<|reserved_special_token_{i}|>") for i in range(SPECIAL_TOKENS)]


def _tokenizer(count: int) -> tuple[list[str], list[str]]:
    """A byte-level vocabulary of `count` tokens, and the merges that make it: all short words, in order of length."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    tokens = [chr(byte) for byte in visible] + [chr(256 + i) for i in range(len(hidden))]
    letters = [chr(ord("a") + i) for i in range(26)]
    words = [chr(256 + hidden.index(0x20)), *letters]
    merges: list[str] = []
    for word in words:
        for letter in letters:
            if len(tokens) == count:
                return tokens, merges
            words.append(word + letter)
            tokens.append(word + letter)
            merges.append(f"{word} {letter}")
    raise AssertionError("words do not run out")


def main() -> None:
    """Writes the files that are asked for and prints where they are."""
    parser = argparse.ArgumentParser(description="Write Llama checkpoints with random weights.")
    parser.add_argument("encodings", nargs="+", choices=(*ENCODINGS, SAFETENSORS), metavar="ENCODING")
    parser.add_argument("--size", choices=SHAPES, default="1B")
    arguments = parser.parse_args()
    for encoding in arguments.encodings:
        print(cached(arguments.size, encoding), flush=True)


if __name__ == "__main__":
    main()
