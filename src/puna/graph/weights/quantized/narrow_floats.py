"""Weights of narrow floats with scales: FP8, MXFP8, MXFP4 and NVFP4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from puna.dtype import DType
from puna.graph.quantization import QuantizationEncoding
from puna.graph.weights.quantized.codes import (
    Bytes,
    Float32Array,
    e8m0_values,
    float8_values,
    fp4_values,
    mxfp4_blocks,
    nibbles_of,
)
from puna.graph.weights.quantized.matrix import QuantizedMatrix, finite_scales
from puna.graph.weights.weight_data import WeightData

__all__ = ["NarrowFloatMatrix"]

_MX_BLOCK: Final = 32
_BF16_BITS: Final = 8  # of a significand, the hidden one included
_FLOAT32_BITS: Final = 24
_SAFE_EXPONENT: Final = 100  # products of scales within 2 to the plus or minus this stay normal in bfloat16


@dataclass(frozen=True, eq=False)
class NarrowFloatMatrix(QuantizedMatrix):
    """`element * scale`, with a scale for each tile of `tile` = (outputs, inputs).

    Attributes:
        elements: E4M3 or E5M2 `[outputs, inputs]`, or E2M1 as uint8 `[outputs, inputs / 2]`.
        scales: One number per tile, `[tiles of outputs, tiles of inputs]` in any shape of that size. uint8 holds
            exponents, E8M0.
        tile: Outputs and inputs that share a scale. Tiles at the edges may be smaller.
        factor: One more scale of the whole matrix, multiplied with the others in float32; None: there is none.
        divides: Whether `factor` divides instead.
    """

    elements: WeightData
    scales: WeightData
    tile: tuple[int, int]
    factor: WeightData | None = None
    divides: bool = False

    @property
    def is_fp4(self) -> bool:
        """Whether the elements are E2M1."""
        return self.elements.dtype is DType.uint8

    @property
    def block_encoding(self) -> QuantizationEncoding | None:
        """MXFP4's own blocks, None for all others."""
        is_mx = self._has_exponents and self.tile == (1, _MX_BLOCK) and self.shape[1] % _MX_BLOCK == 0
        return QuantizationEncoding.MXFP4 if self.is_fp4 and is_mx and self.factor is None else None

    @property
    def rounded_format(self) -> str:
        """bfloat16."""
        return "BF16"

    @property
    def is_exact_when_rounded(self) -> bool:
        """Whether every scale leaves room for the elements' bits in a bfloat16 (powers of two do)."""
        scales = self._scales(0, self.shape[0])
        spare = _FLOAT32_BITS - (_BF16_BITS - (2 if self.is_fp4 else 4))
        exponents = np.frexp(scales)[1]
        is_short = not np.any(scales.view(np.uint32) & np.uint32((1 << spare) - 1))
        return is_short and bool(np.all((np.abs(exponents) < _SAFE_EXPONENT) | (scales == 0)))

    def blocks(self, begin: int, end: int) -> Bytes:
        """As `QuantizedMatrix.blocks`."""
        self._scales(begin, end)
        exponents = self.scales.data.view(np.uint8).reshape(self.shape[0], -1)[begin:end]
        return mxfp4_blocks(nibbles_of(self.elements.data[begin:end]), exponents)

    def values(self, begin: int, end: int) -> Float32Array:
        """As `QuantizedMatrix.values`.

        Raises:
            WeightsError: also an element that is NaN.
        """
        stored = np.ascontiguousarray(self.elements.data[begin:end])
        elements = fp4_values(stored) if self.is_fp4 else float8_values(stored)
        if not self.is_fp4 and not np.isfinite(elements).all():
            self.fail(self.elements, "holds a number that is not finite")
        scales = self._scales(begin, end)
        if scales.shape[1] > 1:
            scales = np.repeat(scales, self.tile[1], axis=1)[:, : self.shape[1]]
        return elements * scales

    def _scales(self, begin: int, end: int) -> Float32Array:
        """The scales of rows `begin:end`, `[rows, tiles of inputs]`."""
        height = self.tile[0]
        stored = self.scales.data.reshape(-(-self.shape[0] // height), -1)
        first = begin // height
        part = stored[first : -(-end // height)]
        values = e8m0_values(part.view(np.uint8)) if self._has_exponents else part.astype(np.float32)
        finite_scales(self.scales, values)
        if self.factor is not None:
            factor = finite_scales(self.factor, self.factor.to_float32().reshape(1, 1))
            with np.errstate(all="ignore"):
                values = values / factor if self.divides else values * factor
            finite_scales(self.factor, values)
        return np.repeat(values, height, axis=0)[begin - first * height : end - first * height]

    @property
    def _has_exponents(self) -> bool:
        return self.scales.dtype in (DType.uint8, DType.float8_e8m0fnu)
