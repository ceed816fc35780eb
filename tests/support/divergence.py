"""Divergence from float32 of the default model in several encodings: the files, and what two engines make of them.

The default model's 576 columns are no multiple of 256, which K-quants need. So its dequantized weights are padded with
zeros to the same function at hidden 768, 12 heads and 4 KV heads, and llama.cpp's own quantizer makes the files. The
reference is transformers in float32 on the weights that a file says, so what is measured is arithmetic, not the
quantization of weights.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import llama_cpp
import numpy as np

from support.family_model import all_logits, load_family
from support.gguf_reference import reference_logits, transformers_model

Logits = np.ndarray[Any, np.dtype[np.float32]]
Values = np.ndarray[Any, np.dtype[np.float64]]

VERSION: Final = 1  # of the files that are kept
ENCODINGS: Final = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "IQ4_NL", "Q4_0")
_FILE_TYPES: Final = {
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q6_K": gguf.LlamaFileType.MOSTLY_Q6_K,
    "Q5_K_M": gguf.LlamaFileType.MOSTLY_Q5_K_M,
    "Q4_K_M": gguf.LlamaFileType.MOSTLY_Q4_K_M,
    "IQ4_XS": gguf.LlamaFileType.MOSTLY_IQ4_XS,
    "IQ4_NL": gguf.LlamaFileType.MOSTLY_IQ4_NL,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
_OLD, _NEW = (576, 9, 3), (768, 12, 4)  # hidden, heads, KV heads; the width of a head stays 64
TEXTS: Final = (
    "The lighthouse keeper counted the ships that passed each evening and wrote their names in a ledger bound in green "
    "cloth. In forty years he had filled eleven such ledgers, and nobody had ever asked to read one. When the light "
    "was made automatic he carried them down the hill in a wheelbarrow, sat on the harbour wall and began to read.",
    "def merge(left, right):\n    result = []\n    while left and right:\n        lower = left if left[0] <= right[0] "
    "else right\n        result.append(lower.pop(0))\n    return result + left + right\n\n# merge([1, 4], [2]) is",
    "Photosynthesis turns light into chemical energy. In plants it happens in the chloroplasts, where chlorophyll "
    "absorbs mostly red and blue light; the green that is left over is what we see. Water is split, oxygen is given "
    "off, and the energy that was gained builds sugar from carbon dioxide.",
    (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8"),
)


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL divergence from the reference of every position, in nats.

    Attributes:
        ours, theirs: Of Puna (`--dtype auto`, float16 cache) and of llama.cpp.
    """

    ours: Values
    theirs: Values


def padded(source: Path) -> Path:
    """The default model in float32, padded with zeros to hidden 768; written once, into the user's cache."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root / "puna" / "divergence" / f"{VERSION}-F32.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        write_padded(source, scratch)
        scratch.rename(path)
    return path


def write_padded(source: Path, target: Path) -> None:
    """Writes `source`, a GGUF file of the default model, in float32 with hidden 768.

    RMSNorm divides by the number of columns: with a third more of them, all zero, the mean of the squares is 3/4 of
    what it was, so epsilon and the weights' squares become 3/4 as well.
    """
    reader = gguf.GGUFReader(source)
    (old, old_heads, old_kv), (new, heads, kv_heads) = _OLD, _NEW
    assert int(reader.fields["llama.embedding_length"].contents()) == old
    changed = {
        "llama.embedding_length": new,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
    }
    epsilon = "llama.attention.layer_norm_rms_epsilon"
    changed[epsilon] = float(reader.fields[epsilon].contents()) * old / new
    changed["general.file_type"] = int(gguf.LlamaFileType.ALL_F32)
    writer = gguf.GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, changed.get(name, field.contents()), kind, sub)
    widths = {old: new, old_heads * 64: heads * 64, old_kv * 64: kv_heads * 64}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        wide = np.zeros([widths.get(size, size) for size in values.shape], np.float32)
        wide[tuple(slice(size) for size in values.shape)] = values
        writer.add_tensor(tensor.name, wide * np.float32((old / new) ** 0.5) if values.ndim == 1 else wide)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantized(source: Path, encoding: str) -> Path:
    """The padded model as llama.cpp quantizes it; made once, into the user's cache."""
    full = padded(source)
    path = full.with_name(f"{VERSION}-{encoding}.gguf")
    if not path.exists():
        scratch = path.with_suffix(f".{os.getpid()}")
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = int(_FILE_TYPES[encoding])
        status = llama_cpp.llama_model_quantize(str(full).encode(), str(scratch).encode(), ctypes.byref(params))
        assert status == 0, f"llama.cpp cannot quantize to {encoding}: {status}"
        scratch.rename(path)
    return path


def measure(path: Path) -> Divergence:
    """Both engines' divergence on a file, over some 700 tokens of prose, code and a licence."""
    llama = llama_cpp.Llama(str(path), n_ctx=512, n_batch=512, logits_all=True, n_threads=2, verbose=False)
    prompts = [list(llama.tokenize(text.encode(), add_bos=False, special=False))[:500] for text in TEXTS]
    theirs = [_llama_logits(llama, ids) for ids in prompts]
    llama.close()
    ours = all_logits(load_family(path, precision="auto", kv_cache_format="float16"), prompts)
    reference = transformers_model(path)
    expected = [reference_logits(reference, ids) for ids in prompts]
    return Divergence(
        *(
            np.concatenate([divergence(want, found) for want, found in zip(expected, side, strict=True)])
            for side in (ours, theirs)
        )
    )


def divergence(reference: Logits, other: Logits) -> Values:
    """KL(reference || other) of every position, in nats."""
    first, second = _log_softmax(reference), _log_softmax(other)
    result: Values = (np.exp(first) * (first - second)).sum(-1)
    return result


def _llama_logits(llama: llama_cpp.Llama, ids: list[int]) -> Logits:
    llama.reset()
    llama.eval(ids)
    return np.array(llama.scores[: len(ids)], dtype=np.float32)


def _log_softmax(logits: Logits) -> Values:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: Values = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
