"""Element types: sizes, kinds, and their NumPy counterparts."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from puna.dtype import DType, finfo

MEMBERS = {
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "bfloat16", "float32",
    "float64", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float6_e2m3fn",
    "float6_e3m2fn", "float4_e2m1fn",
}  # fmt: skip


def test_members_are_the_documented_ones() -> None:
    assert {member.name for member in DType} == MEMBERS
    assert all(DType(member.name) is member and str(member) == member.name for member in DType)


@pytest.mark.parametrize("dtype", DType)
def test_numpy_round_trip(dtype: DType) -> None:
    array = np.zeros(3, dtype.to_numpy())
    assert DType.from_numpy(array.dtype) is dtype
    assert array.itemsize == dtype.size_in_bytes
    assert 1 <= dtype.align <= dtype.size_in_bytes


def test_sizes() -> None:
    assert [d.size_in_bits for d in (DType.bool, DType.int16, DType.bfloat16, DType.float64)] == [8, 16, 16, 64]
    assert [d.size_in_bits for d in (DType.float8_e5m2, DType.float6_e2m3fn, DType.float4_e2m1fn)] == [8, 6, 4]
    assert DType.float4_e2m1fn.size_in_bytes == 1


def test_kinds_partition_the_types() -> None:
    for dtype in DType:
        kinds = [dtype is DType.bool, dtype.is_float, dtype.is_signed_integral, dtype.is_unsigned_integral]
        assert kinds.count(True) == 1, dtype
        assert dtype.is_integral == (dtype.is_signed_integral or dtype.is_unsigned_integral)
    assert {d.name for d in DType if d.is_half} == {"float16", "bfloat16"}
    assert {d.name for d in DType if d.is_float8} == {name for name in MEMBERS if name.startswith("float8")}


UNKNOWN = [np.complex64, "U4", object, np.dtype([("x", "f4")]), np.dtype(">f4"), ml_dtypes.int4]


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_other_numpy_types_are_refused(unknown: object) -> None:
    with pytest.raises(ValueError, match="no DType for the NumPy dtype"):
        DType.from_numpy(unknown)


def test_finfo() -> None:
    fp8 = finfo(DType.float8_e4m3fn)
    assert (fp8.bits, fp8.max, fp8.min, fp8.tiny, fp8.eps) == (8, 448.0, -448.0, 2.0**-6, 0.125)
    assert finfo(DType.bfloat16).eps == 2.0**-7
    assert finfo(DType.float32).max == float(np.finfo(np.float32).max)
    assert finfo(DType.float4_e2m1fn).max == 6.0
    with pytest.raises(ValueError, match="int8 is not a floating-point type"):
        finfo(DType.int8)
