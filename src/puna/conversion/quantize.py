"""Tensors of a checkpoint as a quantized GGUF file stores them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from puna.conversion.checkpoint import Checkpoint
from puna.conversion.gguf_file import EncodedTensor, MetadataValue
from puna.conversion.tensors import TensorSource
from puna.errors import InvalidRequestError
from puna.graph.quantization import (
    QuantizationOptions,
    Recipe,
    TensorChoice,
    TensorOutline,
    choose_formats,
    has_small_values,
)
from puna.graph.weights import WeightData, quantized_pieces

__all__ = ["Importance", "QuantizedTensors", "encoded_tensors", "options_for", "quantized_tensors"]

Importance = Mapping[str, NDArray[np.float32]]
"""Mean squares of what matrices are multiplied with, float32 `[columns]`, by the matrix's name in GGUF files."""

_QUANTIZATION_VERSION: Final = 2  # of GGUF's block formats
_PIECE_BYTES: Final = 1 << 24


@dataclass(frozen=True)
class QuantizedTensors:
    """What a quantized file is made of.

    Attributes:
        metadata: Its keys.
        tensors: Its tensors.
        choices: Which format each of them has, and why.
    """

    metadata: dict[str, MetadataValue]
    tensors: list[EncodedTensor]
    choices: list[TensorChoice]


def options_for(checkpoint: Checkpoint, recipe: Recipe, **more: Any) -> QuantizationOptions:
    """The options of a recipe for a model; `more`: further fields of `QuantizationOptions`.

    Raises:
        InvalidRequestError: The metadata do not state the numbers of layers and heads.
    """
    name = checkpoint.architecture
    layers = _count(checkpoint, f"{name}.block_count")
    heads = _count(checkpoint, f"{name}.attention.head_count")
    key = f"{name}.attention.head_count_kv"
    group = heads // (_count(checkpoint, key) if key in checkpoint.metadata else heads)
    return QuantizationOptions(recipe, layers, group, has_small_values(name, layers, group), **more)


def quantized_tensors(
    checkpoint: Checkpoint,
    options: QuantizationOptions,
    importance: Importance | None = None,
    threads: int | None = None,
) -> QuantizedTensors:
    """A checkpoint as `options` want it. Nothing is read before a tensor's turn comes.

    Args:
        checkpoint: The model.
        options: Which formats its tensors get.
        importance: How much errors in columns matter; a matrix that is not in it has equal columns.
        threads: How many work at once; None: as many as this process should use.

    Raises:
        InvalidRequestError: Quantized tensors would be quantized again and may not.
    """
    outlines = [TensorOutline(source.name, source.shape, source.format) for source in checkpoint.tensors]
    choices = choose_formats(outlines, options)
    formats = [choice.format for choice in choices]
    tensors = encoded_tensors(checkpoint.tensors, formats, importance, threads)
    metadata = {
        **checkpoint.metadata,
        "general.file_type": options.recipe.file_type,
        "general.quantization_version": _QUANTIZATION_VERSION,
    }
    return QuantizedTensors(metadata, tensors, choices)


def encoded_tensors(
    sources: Sequence[TensorSource],
    formats: Sequence[str],
    importance: Importance | None = None,
    threads: int | None = None,
) -> list[EncodedTensor]:
    """Tensors in these formats. Nothing is read before a tensor's turn comes.

    Args:
        sources: The tensors.
        formats: GGML types by name, one for each: its own, or one that has a quantizer; for vectors `F32`.
        importance: As for `quantized_tensors`.
        threads: As for `quantized_tensors`.
    """
    known = importance or {}
    tensors = []
    for source, format in zip(sources, formats, strict=True):
        blocks: Callable[[], Iterator[np.ndarray[Any, Any]]]
        if format == source.format:
            blocks = partial(_stored, source)
        else:
            blocks = partial(_quantized, source, format, known.get(source.name), threads)
        tensors.append(EncodedTensor(source.name, source.shape, format, blocks))
    return tensors


def _stored(source: TensorSource) -> Iterator[np.ndarray[Any, Any]]:
    """The bytes as they are, some MiB at a time."""
    data = source.load()
    stored = data.data.reshape(-1)
    step = max(1, _PIECE_BYTES // stored.itemsize)
    for begin in range(0, len(stored), step):
        yield stored[begin : begin + step]
        data.check()
    _release(data)


def _quantized(
    source: TensorSource, format: str, importance: NDArray[np.float32] | None, threads: int | None
) -> Iterator[np.ndarray[Any, Any]]:
    data = source.load()
    if len(data.shape) < 2:
        yield data.to_float32()  # a vector, which becomes F32
    else:
        yield from quantized_pieces(data, format, importance, threads)
    _release(data)


def _release(data: WeightData) -> None:
    if data.source is not None:
        data.source.release()


def _count(checkpoint: Checkpoint, key: str) -> int:
    value = checkpoint.metadata.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if isinstance(value, np.ndarray) and value.size and (value > 0).all():
        return int(value[0])
    raise InvalidRequestError(f"{key} = {value!r}; a number is expected", param=str(checkpoint.files.path))

