"""Element types of arrays, with their sizes, their kinds and their NumPy counterparts.

NumPy itself knows neither bfloat16 nor the 8-, 6- and 4-bit floats; `ml_dtypes` adds them as ordinary NumPy dtypes, so
every member of `DType` has one, and conversions are real conversions (round to nearest, ties to even).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import ml_dtypes
import numpy as np

__all__ = ["DType", "FInfo", "finfo"]

_Bool: TypeAlias = bool  # inside the class `bool` is a member


class DType(Enum):
    """Type of one array element. The value of a member is its name, so `DType("bfloat16")` works.

    The narrow floats follow the Open Compute Project's names: `e4m3` is 4 exponent and 3 mantissa bits, `fn` has no
    infinities,
    `uz` has one zero. `float8_e8m0fnu` is a power of two without sign (a block scale).
    """

    bool = "bool"
    int8 = "int8"
    int16 = "int16"
    int32 = "int32"
    int64 = "int64"
    uint8 = "uint8"
    uint16 = "uint16"
    uint32 = "uint32"
    uint64 = "uint64"
    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"
    float64 = "float64"
    float8_e4m3fn = "float8_e4m3fn"
    float8_e4m3fnuz = "float8_e4m3fnuz"
    float8_e5m2 = "float8_e5m2"
    float8_e5m2fnuz = "float8_e5m2fnuz"
    float8_e8m0fnu = "float8_e8m0fnu"
    float6_e2m3fn = "float6_e2m3fn"
    float6_e3m2fn = "float6_e3m2fn"
    float4_e2m1fn = "float4_e2m1fn"

    def __str__(self) -> str:
        return str(self.value)

    @property
    def size_in_bits(self) -> int:
        """Bits of information in one element: 4 and 6 for the narrowest floats, 8 for `bool`."""
        return _SUB_BYTE_BITS.get(self, 8 * self.size_in_bytes)

    @property
    def size_in_bytes(self) -> int:
        """Bytes of one element in an array. A 4- or 6-bit float takes a whole byte there (packed data is `uint8`)."""
        return _NUMPY[self].itemsize

    @property
    def align(self) -> int:
        """Alignment in bytes that one element wants in memory."""
        return _NUMPY[self].alignment

    @property
    def is_float(self) -> _Bool:
        """Whether this is a floating-point type of any width."""
        return str(self.value).startswith(("float", "bfloat"))

    @property
    def is_float8(self) -> _Bool:
        """Whether this is one of the 8-bit floats."""
        return str(self.value).startswith("float8")

    @property
    def is_half(self) -> _Bool:
        """Whether this is `float16` or `bfloat16`."""
        return self in (DType.float16, DType.bfloat16)

    @property
    def is_integral(self) -> _Bool:
        """Whether this is an integer type (`bool` is not one)."""
        return self.is_signed_integral or self.is_unsigned_integral

    @property
    def is_signed_integral(self) -> _Bool:
        """Whether this is an integer type with a sign."""
        return str(self.value).startswith("int")

    @property
    def is_unsigned_integral(self) -> _Bool:
        """Whether this is an integer type without a sign."""
        return str(self.value).startswith("uint")

    def to_numpy(self) -> np.dtype[Any]:
        """The NumPy dtype of arrays of this type (from `ml_dtypes` where NumPy has none of its own)."""
        return _NUMPY[self]

    @classmethod
    def from_numpy(cls, dtype: Any) -> DType:
        """The member for a NumPy dtype (or anything that `np.dtype` takes).

        Raises:
            ValueError: the dtype is of another kind (complex, text, objects, records) or is not in this machine's byte
                order.
        """
        wanted = np.dtype(dtype)
        found = _BY_NUMPY.get(wanted)
        if found is None:
            raise ValueError(f"no DType for the NumPy dtype {wanted!s}; there is: {', '.join(d.value for d in cls)}")
        return found


_NUMPY: Final = MappingProxyType({
    member: np.dtype(getattr(ml_dtypes, member.value, None) or member.value) for member in DType
})
_BY_NUMPY: Final = MappingProxyType({numpy_dtype: member for member, numpy_dtype in _NUMPY.items()})
_SUB_BYTE_BITS: Final = MappingProxyType({DType.float6_e2m3fn: 6, DType.float6_e3m2fn: 6, DType.float4_e2m1fn: 4})


@dataclass(frozen=True, slots=True)
class FInfo:
    """Limits of a floating-point type: `max` and `min` finite, `tiny` the smallest normal, `eps` the step after 1."""

    dtype: DType
    bits: int
    max: float
    min: float
    tiny: float
    eps: float


def finfo(dtype: DType) -> FInfo:
    """The numeric limits of a floating-point type.

    Raises:
        ValueError: `dtype` is not a floating-point type.
    """
    if not dtype.is_float:
        raise ValueError(f"{dtype} is not a floating-point type")
    limits: Any = ml_dtypes.finfo(  # type: ignore[no-untyped-call]  # the library's stub leaves it open
        dtype.to_numpy()
    )
    return FInfo(
        dtype=dtype,
        bits=dtype.size_in_bits,
        max=float(limits.max),
        min=float(limits.min),
        tiny=float(limits.smallest_normal),
        eps=float(limits.eps),
    )
