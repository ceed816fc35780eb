"""Whether two checkpoints hold the same tensors, up to what their encodings round away."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from puna.conversion.tensors import TensorSource
from puna.graph.quantization import QuantizationEncoding

__all__ = ["TensorDifference", "compare_tensors", "rounding_of"]

_FLOATS: Final = {"F64": 0.0, "F32": 0.0, "F16": 2.0**-10, "BF16": 2.0**-7}
_PIECE_ELEMENTS: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """A tensor of two checkpoints.

    Attributes:
        name: Its name in a GGUF file.
        error: Root of the mean squared difference as a share of the second's root mean square; infinite where one
            checkpoint lacks the tensor or has it in another shape.
        allowed: How much of that the encodings explain.
        message: What is wrong; empty where nothing is.
    """

    name: str
    error: float
    allowed: float
    message: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the encodings explain the difference."""
        return self.error <= self.allowed


def rounding_of(format: str) -> float:
    """The largest root mean square error, as a share, that storing values in this format can be expected to make.

    Float formats: their step. Block formats: `2 ** (1.5 - bits per element)`, about a quarter above what good
    quantizers reach and far below what a wrong tensor gives, which is 1 or more.
    """
    if format in _FLOATS:
        return _FLOATS[format]
    return float(2.0 ** (1.5 - QuantizationEncoding(format).block_parameters.bits_per_element))


def compare_tensors(
    first: Sequence[TensorSource], second: Sequence[TensorSource], *, on_tensor: Callable[[], None] = lambda: None
) -> Iterator[TensorDifference]:
    """Compares tensors by name, in the order of the first; those that only the second has come last.

    An output matrix that only one of them has is compared with the other's embedding, which that one ties it to.
    """
    mine, theirs = ({source.name: source for source in sources} for sources in (first, second))
    for name, here in mine.items():
        there = theirs.get(name) or (theirs.get("token_embd.weight") if name == "output.weight" else None)
        yield _missing(name, "second") if there is None else _compared(name, here, there)
        on_tensor()
    for name, source in theirs.items():
        if name not in mine:
            tied = mine.get("token_embd.weight") if name == "output.weight" else None
            yield _missing(name, "first") if tied is None else _compared(name, tied, source)


def _missing(name: str, which: str) -> TensorDifference:
    return TensorDifference(name, math.inf, 0.0, f"the {which} model has no such tensor")


def _compared(name: str, first: TensorSource, second: TensorSource) -> TensorDifference:
    allowed = rounding_of(first.format) + rounding_of(second.format)
    if first.shape != second.shape:
        message = f"has shape {list(first.shape)} in the first model, {list(second.shape)} in the second"
        return TensorDifference(name, math.inf, allowed, message)
    mine, theirs = first.load(), second.load()
    columns = math.prod(first.shape[1:])
    step = max(1, _PIECE_ELEMENTS // columns)
    if len(first.shape) < 2:
        step = first.shape[0]  # a vector of blocks has no rows
    squares = norm = 0.0
    for begin in range(0, first.shape[0], step):
        end = min(begin + step, first.shape[0])
        whole = (begin, end) == (0, first.shape[0])
        left, right = (
            (data if whole else data.rows(begin, end)).to_float32().astype(np.float64) for data in (mine, theirs)
        )
        squares += float(np.square(left - right).sum())
        norm += float(np.square(right).sum())
    for data in (mine, theirs):
        if data.source is not None:
            data.source.release()
    error = math.sqrt(squares / norm) if norm else math.sqrt(squares)
    message = "" if error <= allowed else f"differs by {error:.2g} of its size; its encodings explain {allowed:.2g}"
    return TensorDifference(name, error, allowed, message)
