"""Tensors of floats as a GGUF file stores them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np

from puna.conversion.gguf_file import EncodedTensor
from puna.conversion.tensors import TensorSource
from puna.dtype import DType
from puna.errors import InvalidRequestError, WeightsError
from puna.graph.weights import WeightData

__all__ = ["FLOAT_FORMATS", "file_type", "float_tensors", "most_stored"]

Array: TypeAlias = np.ndarray[Any, Any]

FLOAT_FORMATS: Final = {"F32": DType.float32, "F16": DType.float16, "BF16": DType.bfloat16}
_FILE_TYPES: Final = {"F32": 0, "F16": 1, "BF16": 32}
_PIECE_ELEMENTS: Final = 1 << 22


def file_type(encoding: str) -> int:
    """`general.file_type` of a file whose matrices are `F32`, `F16` or `BF16`."""
    return _FILE_TYPES[encoding]


def most_stored(sources: Sequence[TensorSource]) -> str:
    """The float format that most elements of matrices have: `F32`, `F16` or `BF16`."""
    counts: Counter[str] = Counter()
    for source in sources:
        if len(source.shape) > 1 and source.format in FLOAT_FORMATS:
            counts[source.format] += source.shape[0] * source.shape[1]
    return counts.most_common(1)[0][0] if counts else "F32"


def float_tensors(sources: Sequence[TensorSource], encoding: str) -> list[EncodedTensor]:
    """The tensors with matrices as `F32`, `F16` or `BF16`, and all else as `F32`.

    Values are rounded to the nearest, ties to even. What float16 cannot hold is an error, found when the tensor's turn
    comes.

    Args:
        sources: The tensors. Quantized ones are refused: what was rounded away does not come back.
        encoding: How matrices are stored.

    Raises:
        InvalidRequestError: A tensor is quantized.
    """
    for source in sources:
        if source.format not in (*FLOAT_FORMATS, "F64"):
            message = f"{source.name} is {source.format}; a quantized tensor is not made a float one"
            raise InvalidRequestError(message, param="to")
    chosen = {source.name: encoding if len(source.shape) > 1 else "F32" for source in sources}
    return [
        EncodedTensor(source.name, source.shape, chosen[source.name], partial(_pieces, source, chosen[source.name]))
        for source in sources
    ]


def _pieces(source: TensorSource, encoding: str) -> Iterator[Array]:
    data = source.load()
    columns = int(np.prod(source.shape[1:]))
    step = max(1, _PIECE_ELEMENTS // columns)
    for begin in range(0, source.shape[0], step):
        part = data.rows(begin, min(begin + step, source.shape[0]))
        converted = part.astype(FLOAT_FORMATS[encoding])
        if encoding == "F16" and part.format != "F16":
            _check_range(part, converted.data)
        yield converted.data
        part.check()
    if data.source is not None:
        data.source.release()


def _check_range(part: WeightData, halves: Array) -> None:
    if not np.isfinite(halves).all() and np.isfinite(part.to_float32()).all():
        file = part.source.path if part.source is not None else None
        raise WeightsError("holds values beyond float16; convert to BF16 or F32", file=file, tensor=part.name)
