"""Which encodings a checkpoint holds, and whether the one that was asked for can be had from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from puna.dtype import DType
from puna.errors import InvalidRequestError
from puna.pipelines.lib.encodings import SupportedEncoding

if TYPE_CHECKING:
    from puna.graph.weights import Weights

__all__ = ["check_stored", "stored_encodings"]

_CASTS: Final = frozenset({
    (SupportedEncoding.float32, SupportedEncoding.bfloat16),
    (SupportedEncoding.bfloat16, SupportedEncoding.float32),
})


def stored_encodings(weights: Weights) -> list[SupportedEncoding]:
    """The encodings of a checkpoint's matrices: those of quantized layers first, then the one that has most bytes.

    Vectors (norm weights, biases) do not count: quantized checkpoints keep them in float32. Tensors whose type has no
    encoding's name, such as integers, do not count either.
    """
    sizes: Counter[SupportedEncoding] = Counter()
    for _, tensor in weights.items():
        if len(tensor.shape) < 2:
            continue
        encoding = SupportedEncoding.of_tensor(tensor.stored_as)
        if encoding is not None:
            sizes[encoding] += tensor.nbytes
    by_size = [encoding for encoding, _ in sizes.most_common()]
    return sorted(by_size, key=lambda encoding: not encoding.is_layered or encoding.is_gguf_block)


def check_stored(
    asked: SupportedEncoding, stored: Sequence[SupportedEncoding], files: Sequence[Path]
) -> tuple[DType, DType] | None:
    """What must be converted at load so that weights of these encodings run as `asked`.

    A quantized file may hold several formats, so a quantized one only has to be among them. Of float files the type
    that most bytes have decides. Only float32 and bfloat16 are converted into each other, and only where nothing else
    is stored.

    Returns:
        (from, to), or None where the files hold the encoding.

    Raises:
        InvalidRequestError: they do not hold it and cannot be converted to it.
    """
    if stored and (asked is stored[0] or (asked in stored and (asked.is_gguf_block or stored[0].is_layered))):
        return None
    if stored and (stored[0], asked) in _CASTS and set(stored) <= {stored[0], asked}:
        return stored[0].dtype, asked.dtype
    names = ", ".join(path.name for path in files)
    raise InvalidRequestError(
        f"{names} holds no {asked} weights; there is: {', '.join(stored) or 'none with a name'}",
        param="quantization_encoding",
    )
