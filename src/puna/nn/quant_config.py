"""Records of quantized checkpoints whose codes and scales are separate tensors: GPTQ, FP8 and FP4.

`QuantizationConfig` is GPTQ's, `QuantConfig` that of scaled narrow floats.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from puna.dtype import DType

__all__ = [
    "InputScaleSpec",
    "QuantConfig",
    "QuantFormat",
    "QuantizationConfig",
    "ScaleGranularity",
    "ScaleOrigin",
    "WeightScaleSpec",
]


@dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """GPTQ's settings, as a checkpoint's `quantization_config` states them.

    Attributes:
        quant_method: `gptq`.
        bits: Bits of a code; 4 or 8.
        group_size: Inputs that share a scale; -1: all.
        desc_act: Whether inputs were quantized in the order of their activations: then `g_idx` names their groups.
        sym: Whether the zero point is the middle, `2 ** (bits - 1)`. False: `qzeros` holds one per group and output.

    Raises:
        ValueError: another method or number of bits, or a group size of 0.
    """

    quant_method: str
    bits: int
    group_size: int
    desc_act: bool = False
    sym: bool = False

    def __post_init__(self) -> None:
        if self.quant_method != "gptq":
            raise ValueError(f"quant_method = {self.quant_method!r} is not supported; supported: gptq")
        if self.bits not in (4, 8):
            raise ValueError(f"bits = {self.bits} is not supported; supported: 4, 8")
        if self.group_size < 1 and self.group_size != -1:
            raise ValueError(f"group_size must be at least 1, or -1, got {self.group_size}")


class ScaleGranularity(StrEnum):
    """What shares one scale: the whole tensor, a row, a column, or a block of both."""

    TENSOR = "tensor"
    ROWWISE = "rowwise"
    COLWISE = "colwise"
    BLOCK = "block"


class ScaleOrigin(StrEnum):
    """Whether a scale is stored (`STATIC`) or computed from the values at hand (`DYNAMIC`)."""

    STATIC = "static"
    DYNAMIC = "dynamic"


class QuantFormat(StrEnum):
    """How a checkpoint writes its scaled numbers."""

    COMPRESSED_TENSORS_FP8 = "compressed-tensors-fp8"
    FBGEMM_FP8 = "fbgemm-fp8"
    BLOCKSCALED_FP8 = "blockscaled-fp8"
    MXFP8 = "mxfp8"
    NVFP4 = "nvfp4"
    MXFP4 = "mxfp4"
    MXFP6 = "mxfp6"
    INT8_W8A8 = "int8-w8a8"


def _check_block(granularity: ScaleGranularity, block_size: tuple[int, int] | None) -> None:
    is_pair = isinstance(block_size, tuple) and len(block_size) == 2 and all(size >= 1 for size in block_size)
    if granularity is ScaleGranularity.BLOCK and not is_pair:
        raise ValueError(f"block granularity needs a block_size of two numbers from 1, got {block_size!r}")
    if granularity is not ScaleGranularity.BLOCK and block_size is not None:
        raise ValueError(f"block_size {block_size!r} has no meaning with {granularity} granularity")


@dataclass(frozen=True, kw_only=True)
class WeightScaleSpec:
    """Scales of weights.

    Attributes:
        granularity: What shares a scale.
        dtype: Element type of the scales.
        block_size: (outputs, inputs) of a block; only with block granularity.

    Raises:
        ValueError: block granularity without a pair, or a pair without it.
    """

    granularity: ScaleGranularity
    dtype: DType
    block_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _check_block(self.granularity, self.block_size)


@dataclass(frozen=True, kw_only=True)
class InputScaleSpec:
    """Scales of activations.

    Attributes:
        granularity: What shares a scale.
        origin: Stored or computed.
        dtype: Element type of the scales.
        activation_scale_ub: Upper bound of computed scales, or None.
        block_size: (tokens, inputs) of a block; only with block granularity.

    Raises:
        ValueError: block granularity without a pair, or a pair without it.
    """

    granularity: ScaleGranularity
    origin: ScaleOrigin
    dtype: DType
    activation_scale_ub: float | None = None
    block_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _check_block(self.granularity, self.block_size)


@dataclass(frozen=True, kw_only=True)
class QuantConfig:
    """How a checkpoint of scaled narrow floats is to be read.

    Attributes:
        input_scale: Scales of activations.
        weight_scale: Scales of weights.
        mlp_quantized_layers: Layers whose MLP has a quantized matrix. Others of it need not be.
        attn_quantized_layers: Layers whose attention has one.
        format: How scales and numbers are written.
        embedding_output_dtype: Element type of embedding and output matrix where they are not quantized, or None.
        bias_dtype: Element type of biases, or None.
        can_use_fused_mlp: Whether gate and up have the scales that a fused product needs.
    """

    input_scale: InputScaleSpec
    weight_scale: WeightScaleSpec
    mlp_quantized_layers: frozenset[int]
    attn_quantized_layers: frozenset[int]
    format: QuantFormat
    embedding_output_dtype: DType | None = None
    bias_dtype: DType | None = None
    can_use_fused_mlp: bool = field(default=False)

    @property
    def is_static(self) -> bool:
        """Whether activation scales are stored."""
        return self.input_scale.origin is ScaleOrigin.STATIC

    @property
    def is_dynamic(self) -> bool:
        """Whether activation scales are computed."""
        return self.input_scale.origin is ScaleOrigin.DYNAMIC

    @property
    def is_nvfp4(self) -> bool:
        """Whether weights are NVFP4."""
        return self.format is QuantFormat.NVFP4

    @property
    def is_mxfp4(self) -> bool:
        """Whether weights are MXFP4."""
        return self.format is QuantFormat.MXFP4

    @property
    def is_fp4(self) -> bool:
        """Whether weights are of one of the 4-bit formats."""
        return self.is_nvfp4 or self.is_mxfp4

    @property
    def scales_granularity_mnk(self) -> tuple[int, int, int]:
        """(tokens, outputs, inputs) that share a scale; -1: all of them."""
        inputs, weights = self.input_scale, self.weight_scale
        m = 1 if inputs.granularity in (ScaleGranularity.COLWISE, ScaleGranularity.ROWWISE) else -1
        n = 1 if weights.granularity is ScaleGranularity.ROWWISE else -1
        k = -1
        if inputs.block_size is not None:
            m, k = inputs.block_size
        if weights.block_size is not None:
            n, k = weights.block_size
        return m, n, k
