"""Encodings by the names that users write (`bfloat16`, `q4_k`): what each implies, and how a file's name tells it.

The documented set is widened by what runs here: float16 and bfloat16 run on CPUs, and so does every block format of
GGUF, and integers with scales (AWQ, compressed-tensors). Six-bit floats have a name, and are refused by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import PurePath
from typing import Final

from puna.dtype import DType
from puna.errors import InvalidRequestError, UnsupportedModelError
from puna.graph.quantization import QuantizationEncoding

__all__ = ["RUNNABLE_ENCODINGS", "SupportedEncoding", "infer_encoding_from_name", "require_runnable"]


class SupportedEncoding(StrEnum):
    """How a model's weights are stored, as `--quantization-encoding` names it."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    q4_0 = "q4_0"
    q4_1 = "q4_1"
    q5_0 = "q5_0"
    q5_1 = "q5_1"
    q8_0 = "q8_0"
    q2_k = "q2_k"
    q3_k = "q3_k"
    q4_k = "q4_k"
    q5_k = "q5_k"
    q6_k = "q6_k"
    q8_k = "q8_k"
    iq1_s = "iq1_s"
    iq1_m = "iq1_m"
    iq2_xxs = "iq2_xxs"
    iq2_xs = "iq2_xs"
    iq2_s = "iq2_s"
    iq3_xxs = "iq3_xxs"
    iq3_s = "iq3_s"
    iq4_nl = "iq4_nl"
    iq4_xs = "iq4_xs"
    tq1_0 = "tq1_0"
    tq2_0 = "tq2_0"
    mxfp4 = "mxfp4"
    gptq = "gptq"
    awq = "awq"
    int4 = "int4"
    int8 = "int8"
    mxfp8 = "mxfp8"
    float8_e4m3fn = "float8_e4m3fn"
    float4_e2m1fnx2 = "float4_e2m1fnx2"
    float6_e2m3fn = "float6_e2m3fn"

    @property
    def dtype(self) -> DType:
        """Element type of the stored weights: `uint8` for every packed encoding."""
        return _DTYPES.get(self, DType.uint8)

    @property
    def quantization_encoding(self) -> QuantizationEncoding | None:
        """The block format (or GPTQ); None for floats, narrow ones too, and for integers with scales of their own."""
        known = QuantizationEncoding.__members__.get(self.value.upper())
        return known if self not in _DTYPES else None

    @property
    def is_gguf_block(self) -> bool:
        """Whether weights come in GGUF's self-contained blocks."""
        encoding = self.quantization_encoding
        return encoding is not None and encoding.is_gguf

    @classmethod
    def parse(cls, name: str) -> SupportedEncoding:
        """The encoding of this name.

        Raises:
            InvalidRequestError: there is none of this name.
        """
        try:
            return cls(name)
        except ValueError:
            raise InvalidRequestError(
                f"{name!r} is unknown; there is: {', '.join(cls)}", param="quantization_encoding"
            ) from None

    @property
    def is_layered(self) -> bool:
        """Whether it is one of layers whose codes and scales are tensors of their own."""
        return self in _LAYERED

    @classmethod
    def of_tensor(cls, stored_as: str) -> SupportedEncoding | None:
        """The encoding of a tensor that is stored under this name, None if it is none of these."""
        return cls(stored_as) if stored_as in cls.__members__ else None


_DTYPES: Final = {
    SupportedEncoding.float32: DType.float32,
    SupportedEncoding.float16: DType.float16,
    SupportedEncoding.bfloat16: DType.bfloat16,
    SupportedEncoding.float8_e4m3fn: DType.float8_e4m3fn,
}
_NOT_RUN: Final = frozenset({SupportedEncoding.float6_e2m3fn})
_LAYERED: Final = frozenset({
    SupportedEncoding.gptq,
    SupportedEncoding.awq,
    SupportedEncoding.int4,
    SupportedEncoding.int8,
    SupportedEncoding.mxfp8,
    SupportedEncoding.mxfp4,
    SupportedEncoding.float8_e4m3fn,
    SupportedEncoding.float4_e2m1fnx2,
})

RUNNABLE_ENCODINGS: Final = tuple(encoding for encoding in SupportedEncoding if encoding not in _NOT_RUN)
"""What runs on this device."""

# The first row with a mark inside the lower-cased base name wins. The documented marks come first, in their order;
# those of further block formats follow, longer names before names they contain.
_MARKS: Final[tuple[tuple[tuple[str, ...], SupportedEncoding], ...]] = (
    (("f32", "fp32", "float32"), SupportedEncoding.float32),
    (("bf16", "bfloat16"), SupportedEncoding.bfloat16),
    (("fp16", "float16"), SupportedEncoding.float16),
    (("q4_k_m",), SupportedEncoding.q4_k),
    (("q4_0",), SupportedEncoding.q4_0),
    (("q6_k",), SupportedEncoding.q6_k),
    (("gptq",), SupportedEncoding.gptq),
    (("awq",), SupportedEncoding.awq),
    (("mxfp4",), SupportedEncoding.mxfp4),
    (("mxfp8",), SupportedEncoding.mxfp8),
    (("f8", "fp8", "float8"), SupportedEncoding.float8_e4m3fn),
    (("fp6", "float6"), SupportedEncoding.float6_e2m3fn),
    (("fp4", "f4", "float4", "nvfp4"), SupportedEncoding.float4_e2m1fnx2),
    (("f16",), SupportedEncoding.float16),
    *(
        ((encoding.value,), encoding)
        for encoding in sorted(SupportedEncoding, key=lambda e: (-len(e.value), e.value))
        if encoding.is_gguf_block
    ),
)


def infer_encoding_from_name(path: str | PurePath) -> SupportedEncoding | None:
    """The encoding that a weight file's name tells, or None.

    The documented order decides: `f32|fp32|float32`, `bf16|bfloat16`, `fp16|float16`, `q4_k_m`, `q4_0`, `q6_k`, `gptq`,
    `f8|fp8|float8`, `fp6|float6`, `fp4|f4|float4|nvfp4`. Beyond the documentation, `awq`; `mxfp4` and `mxfp8`, which
    are these formats, not FP4 and FP8; and last `f16` and the names of GGUF's other block formats.
    """
    name = PurePath(path).name.lower()
    return next((encoding for marks, encoding in _MARKS if any(mark in name for mark in marks)), None)


def require_runnable(encoding: SupportedEncoding, supported: Sequence[SupportedEncoding], architecture: str) -> None:
    """Refuse an encoding that does not run here, or that an architecture does not list.

    Raises:
        UnsupportedModelError: it is one of the two.
    """
    if encoding in _NOT_RUN:
        raise UnsupportedModelError(
            "quantization_encoding",
            encoding.value,
            supported=f"on cpu: {', '.join(RUNNABLE_ENCODINGS)} (no accelerator can be used instead)",
        )
    if encoding not in supported:
        raise UnsupportedModelError(
            "quantization_encoding", encoding.value, supported=f"by {architecture}: {', '.join(supported)}"
        )
