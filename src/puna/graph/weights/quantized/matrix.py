"""`QuantizedMatrix`: a weight matrix whose codes and scales are separate tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from puna.errors import WeightsError
from puna.graph.quantization import QuantizationEncoding
from puna.graph.weights.quantized.codes import Bytes, Float32Array
from puna.graph.weights.weight_data import WeightData

__all__ = ["QuantizedMatrix"]


@dataclass(frozen=True, eq=False)
class QuantizedMatrix(ABC):
    """What a checkpoint's quantized layer says of its weight.

    Attributes:
        name: The name of the weight that it stands for, `….weight`.
        shape: `(outputs, inputs)`.
        parts: The stored tensors that it is made of.
        scheme: What else its values follow from, as text: the same parts under another scheme are another weight.
        stored_as: The encoding's name, for people: `gptq`, `float8_e4m3fn`, …
    """

    name: str
    shape: tuple[int, int]
    parts: tuple[WeightData, ...]
    scheme: str
    stored_as: str

    @property
    @abstractmethod
    def block_encoding(self) -> QuantizationEncoding | None:
        """The block format that holds the very same values, or None."""

    @property
    @abstractmethod
    def rounded_format(self) -> str:
        """`BF16` or `F16`: what values are rounded to where no block format holds them."""

    @property
    @abstractmethod
    def is_exact_when_rounded(self) -> bool:
        """Whether every value is a value of `rounded_format`."""

    @abstractmethod
    def blocks(self, begin: int, end: int) -> Bytes:
        """Rows `begin:end` in `block_encoding`, uint8 `[end - begin, row_bytes]`.

        Raises:
            WeightsError: a scale that is not finite, or a code or zero point out of range.
        """

    @abstractmethod
    def values(self, begin: int, end: int) -> Float32Array:
        """Rows `begin:end`: code times scale, computed in float32. Raises as `blocks`."""

    @property
    def nbytes(self) -> int:
        """Bytes of all parts, as stored."""
        return sum(part.nbytes for part in self.parts)

    def check(self) -> None:
        """Raises WeightsError if a file was cut while its parts were read."""
        for part in self.parts:
            part.check()

    def fail(self, part: WeightData, message: str) -> NoReturn:
        """Raises WeightsError about one of the parts."""
        refuse(part, message)


def refuse(part: WeightData, message: str) -> NoReturn:
    """Raises WeightsError about a stored tensor."""
    raise WeightsError(message, file=part.source.path if part.source is not None else None, tensor=part.name)


def finite_scales(part: WeightData, scales: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same scales.

    Raises:
        WeightsError: one is an infinity or NaN.
    """
    if not np.isfinite(scales).all():
        refuse(part, "holds a scale that is not finite")
    return scales
