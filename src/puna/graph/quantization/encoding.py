"""`QuantizationEncoding`: how a quantized weight is stored, and the size of its blocks.

A block holds the codes and the scales of a fixed number of neighbouring elements of one row (along the input axis, the
last one). Source of the figures: the GGUF specification's tensor types; `puna._native.format_info` says the same and
is tested against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

__all__ = ["BlockParameters", "QuantizationEncoding"]


@dataclass(frozen=True, slots=True)
class BlockParameters:
    """Size of one block.

    Attributes:
        elements_per_block: weights in a block.
        block_size: bytes of a block.
    """

    elements_per_block: int
    block_size: int

    @property
    def bits_per_element(self) -> float:
        """Storage of one weight in bits, scales included."""
        return 8 * self.block_size / self.elements_per_block


class QuantizationEncoding(Enum):
    """An encoding of quantized weights; the value of a member is its name in GGUF files (`GPTQ` is in none)."""

    Q4_0 = "Q4_0"
    Q4_1 = "Q4_1"
    Q5_0 = "Q5_0"
    Q5_1 = "Q5_1"
    Q8_0 = "Q8_0"
    Q2_K = "Q2_K"
    Q3_K = "Q3_K"
    Q4_K = "Q4_K"
    Q5_K = "Q5_K"
    Q6_K = "Q6_K"
    Q8_K = "Q8_K"
    IQ1_S = "IQ1_S"
    IQ1_M = "IQ1_M"
    IQ2_XXS = "IQ2_XXS"
    IQ2_XS = "IQ2_XS"
    IQ2_S = "IQ2_S"
    IQ3_XXS = "IQ3_XXS"
    IQ3_S = "IQ3_S"
    IQ4_NL = "IQ4_NL"
    IQ4_XS = "IQ4_XS"
    TQ1_0 = "TQ1_0"
    TQ2_0 = "TQ2_0"
    MXFP4 = "MXFP4"
    GPTQ = "GPTQ"

    def __str__(self) -> str:
        return str(self.value)

    @property
    def name(self) -> str:
        """The encoding's name in lower case, as configurations write it: `q4_k`."""
        return str(self.value).lower()

    @property
    def is_gguf(self) -> bool:
        """Whether weights of this encoding come from GGUF files and consist of self-contained blocks."""
        return self in _BLOCKS

    @property
    def block_parameters(self) -> BlockParameters:
        """Elements and bytes of a block.

        Raises:
            ValueError: GPTQ, which stores codes and scales in tensors of their own.
        """
        parameters = _BLOCKS.get(self)
        if parameters is None:
            raise ValueError(f"{self} has no blocks: its codes and its scales are separate tensors")
        return parameters

    @property
    def elements_per_block(self) -> int:
        """Weights in a block. Raises as `block_parameters`."""
        return self.block_parameters.elements_per_block

    @property
    def block_size(self) -> int:
        """Bytes of a block. Raises as `block_parameters`."""
        return self.block_parameters.block_size

    @classmethod
    def from_name(cls, name: str) -> QuantizationEncoding:
        """The encoding of this name in any case: `q4_k`, `Q4_K`.

        Raises:
            ValueError: there is none of this name; the message lists those there are.
        """
        found = cls.__members__.get(name.upper())
        if found is None:
            raise ValueError(f"quantization encoding {name!r} is unknown; there is: {', '.join(e.name for e in cls)}")
        return found


_BLOCKS: Final = MappingProxyType({
    QuantizationEncoding.Q4_0: BlockParameters(32, 18),
    QuantizationEncoding.Q4_1: BlockParameters(32, 20),
    QuantizationEncoding.Q5_0: BlockParameters(32, 22),
    QuantizationEncoding.Q5_1: BlockParameters(32, 24),
    QuantizationEncoding.Q8_0: BlockParameters(32, 34),
    QuantizationEncoding.Q2_K: BlockParameters(256, 84),
    QuantizationEncoding.Q3_K: BlockParameters(256, 110),
    QuantizationEncoding.Q4_K: BlockParameters(256, 144),
    QuantizationEncoding.Q5_K: BlockParameters(256, 176),
    QuantizationEncoding.Q6_K: BlockParameters(256, 210),
    QuantizationEncoding.Q8_K: BlockParameters(256, 292),
    QuantizationEncoding.IQ1_S: BlockParameters(256, 50),
    QuantizationEncoding.IQ1_M: BlockParameters(256, 56),
    QuantizationEncoding.IQ2_XXS: BlockParameters(256, 66),
    QuantizationEncoding.IQ2_XS: BlockParameters(256, 74),
    QuantizationEncoding.IQ2_S: BlockParameters(256, 82),
    QuantizationEncoding.IQ3_XXS: BlockParameters(256, 98),
    QuantizationEncoding.IQ3_S: BlockParameters(256, 110),
    QuantizationEncoding.IQ4_NL: BlockParameters(32, 18),
    QuantizationEncoding.IQ4_XS: BlockParameters(256, 136),
    QuantizationEncoding.TQ1_0: BlockParameters(256, 54),
    QuantizationEncoding.TQ2_0: BlockParameters(256, 66),
    QuantizationEncoding.MXFP4: BlockParameters(32, 17),
})
