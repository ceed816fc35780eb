"""DLPack for the element types that NumPy's own exchange refuses: bfloat16 and the 8-bit floats.

NumPy already makes and consumes DLPack capsules, with the right lifetimes. It only lacks type codes. So an array of
such a type travels as unsigned integers of the same width, and the type code inside the capsule, which belongs to
exactly one producer and one consumer until it is consumed, is exchanged on the way: on export after NumPy made the
capsule, on import before NumPy takes it.

Source: the DLPack 1.0 header (`dlpack.h`): `DLTensor`, `DLManagedTensor`, `DLManagedTensorVersioned`, `DLDataTypeCode`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from puna.dtype import DType

__all__ = ["CPU_DEVICE_TYPE", "export_array", "import_array"]

CPU_DEVICE_TYPE: Final = 1
_UINT_CODE: Final = 1
_NAME: Final = b"dltensor"
_VERSIONED_NAME: Final = b"dltensor_versioned"
_MAX_VERSION: Final = (1, 0)

# The codes of `DLDataTypeCode` that NumPy lacks, for the types that fill whole bytes.
_CODES: Final = MappingProxyType({
    DType.bfloat16: 4,
    DType.float8_e4m3fn: 10,
    DType.float8_e4m3fnuz: 11,
    DType.float8_e5m2: 12,
    DType.float8_e5m2fnuz: 13,
    DType.float8_e8m0fnu: 14,
})
_TYPES: Final = MappingProxyType({(code, dtype.size_in_bits): dtype for dtype, code in _CODES.items()})
_SUB_BYTE: Final = frozenset(dtype for dtype in DType if dtype.size_in_bits < 8)


class _Device(ctypes.Structure):
    _fields_ = [("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    ]


class _VersionedTensor(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


def _capsule_function(name: str, restype: Any) -> Callable[[object, bytes], Any]:
    prototype = ctypes.PYFUNCTYPE(restype, ctypes.py_object, ctypes.c_char_p)
    function: Callable[[object, bytes], Any] = prototype((name, ctypes.pythonapi))
    return function


_is_valid: Final = _capsule_function("PyCapsule_IsValid", ctypes.c_int)
_get_pointer: Final = _capsule_function("PyCapsule_GetPointer", ctypes.c_void_p)


def _tensor_of(capsule: object) -> _Tensor:
    """The `DLTensor` inside a capsule that nobody has consumed yet."""
    if _is_valid(capsule, _VERSIONED_NAME):
        versioned = _VersionedTensor.from_address(_get_pointer(capsule, _VERSIONED_NAME))
        if versioned.major != _MAX_VERSION[0]:
            raise BufferError(f"the DLPack capsule has version {versioned.major}, version 1 was asked for")
        return versioned.tensor  # type: ignore[no-any-return]  # ctypes fields are untyped
    if _is_valid(capsule, _NAME):
        return _Tensor.from_address(_get_pointer(capsule, _NAME))
    raise BufferError(f"{capsule!r} is not an unconsumed DLPack capsule")


def export_array(array: np.ndarray[Any, Any], dtype: DType, **request: Any) -> object:
    """A DLPack capsule that shares the memory of `array`.

    Args:
        array: an array of any shape and strides.
        dtype: its element type.
        **request: the consumer's keywords of `__dlpack__` (`stream`, `max_version`, `dl_device`, `copy`).

    Raises:
        BufferError: the element type takes less than a byte, the consumer speaks a DLPack without a read-only mark and
            the array is read-only, or the request names another device.
    """
    if dtype in _SUB_BYTE:
        raise BufferError(f"{dtype} takes less than a byte and has no DLPack form here; exchange the packed uint8 data")
    code = _CODES.get(dtype)
    if code is None:
        return array.__dlpack__(**request)
    capsule = array.view(f"u{dtype.size_in_bytes}").__dlpack__(**request)
    _tensor_of(capsule).dtype.code = code
    return capsule


class _Producer:
    """Hands one capsule to NumPy."""

    def __init__(self, capsule: object, device: tuple[int, int]) -> None:
        self._capsule = capsule
        self._device = device

    def __dlpack__(self, **_request: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device


def import_array(source: Any) -> np.ndarray[Any, Any]:
    """A NumPy array that shares the memory of any object with `__dlpack__` on the CPU.

    Raises:
        TypeError: `source` has no `__dlpack__`.
        BufferError: its memory is on another device, or its element type has no `DType`.
    """
    if not hasattr(source, "__dlpack__") or not hasattr(source, "__dlpack_device__"):
        raise TypeError(f"{type(source).__name__} does not speak DLPack (it has no __dlpack__)")
    device = source.__dlpack_device__()
    if int(device[0]) != CPU_DEVICE_TYPE:
        raise BufferError(f"the array is on DLPack device {tuple(device)}; only CPU memory can be shared")
    try:
        capsule = source.__dlpack__(max_version=_MAX_VERSION)
    except TypeError:  # a producer from before DLPack 1.0 does not know the keyword
        capsule = source.__dlpack__()
    element = _tensor_of(capsule).dtype
    dtype = _TYPES.get((element.code, element.bits)) if element.lanes == 1 else None
    if dtype is not None:
        element.code = _UINT_CODE
    array = _numpy_from(_Producer(capsule, (int(device[0]), int(device[1]))))
    return array if dtype is None else array.view(dtype.to_numpy())


def _numpy_from(producer: _Producer) -> np.ndarray[Any, Any]:
    try:
        array: np.ndarray[Any, Any] = np.from_dlpack(producer)
        DType.from_numpy(array.dtype)
    except (RuntimeError, ValueError) as error:  # NumPy names unknown codes so; complex numbers have no DType
        raise BufferError(f"the array's element type has no DType: {error}") from error
    return array
