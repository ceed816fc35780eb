"""`Buffer`: typed n-dimensional memory on a device."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, overload

import numpy as np

from puna.driver import dlpack
from puna.driver.device import CPU, Device
from puna.dtype import DType
from puna.errors import DTypeError, ShapeError

__all__ = ["Buffer"]

Array: TypeAlias = np.ndarray[Any, Any]
MapMode: TypeAlias = Literal["readonly", "copyonwrite", "readwrite"]
_HOST: Final = CPU()
_MAP_MODES: Final = {"readonly": "r", "copyonwrite": "c", "readwrite": "r+"}


class Buffer:
    """An n-dimensional array of one element type on a device.

    A new buffer's contents are undefined. Slices and `view` share memory with the buffer they come from.

    Args:
        dtype: element type.
        shape: number of elements along each axis; `()` is a scalar.
        device: where the memory is; the first CPU by default.
        pinned: ask for page-locked memory. It speeds copies to an accelerator up; on the CPU there is nothing to copy
            to, so True is refused.

    Raises:
        ValueError: a negative extent, or `pinned=True`.
    """

    __slots__ = ("_array", "_device", "_dtype")

    def __init__(self, dtype: DType, shape: Sequence[int], device: Device | None = None, pinned: bool = False) -> None:
        if pinned:
            raise ValueError("pinned = True: page-locked memory serves accelerators, there is none")
        extents = tuple(operator.index(extent) for extent in shape)
        if any(extent < 0 for extent in extents):
            raise ValueError(f"shape {extents} has a negative extent")
        self._array: Array = np.empty(extents, dtype.to_numpy())
        self._dtype = dtype
        self._device = device or _HOST

    @classmethod
    def _wrap(cls, array: Array, device: Device | None = None) -> Buffer:
        self = cls.__new__(cls)
        self._array = array
        self._dtype = DType.from_numpy(array.dtype)
        self._device = device or _HOST
        return self

    # -- making one ----------------------------------------------------------------------------------------------------

    @classmethod
    def from_numpy(cls, array: Array) -> Buffer:
        """A buffer that shares the memory of a NumPy array, whatever its strides; read-only if the array is.

        Raises:
            ValueError: the array's type has no `DType`.
        """
        return cls._wrap(np.asarray(array))

    @classmethod
    def from_dlpack(cls, source: Any) -> Buffer:
        """A buffer that shares the memory of an array that speaks DLPack (PyTorch, JAX, …), bfloat16 and fp8 included.

        Raises:
            TypeError: `source` does not speak DLPack.
            BufferError: its memory is not the CPU's, or its element type has no `DType`.
        """
        if isinstance(source, Buffer):
            return cls._wrap(source._array, source._device)
        if isinstance(source, np.ndarray):
            return cls.from_numpy(source)
        return cls._wrap(dlpack.import_array(source))

    @classmethod
    def zeros(cls, shape: Sequence[int], dtype: DType, device: Device | None = None, pinned: bool = False) -> Buffer:
        """A buffer of zeros."""
        buffer = cls(dtype, shape, device, pinned)
        buffer._array[...] = 0
        return buffer

    @classmethod
    def scalar(cls, value: Any, dtype: DType, device: Device | None = None) -> Buffer:
        """A buffer of rank 0 that holds `value`."""
        buffer = cls(dtype, (), device)
        buffer._array[...] = value
        return buffer

    @classmethod
    def mmap(
        cls, filename: str | Path, dtype: DType, shape: Sequence[int], mode: MapMode = "copyonwrite", offset: int = 0
    ) -> Buffer:
        """A buffer over a part of a file, without reading it.

        Args:
            filename: the file.
            dtype: element type of its bytes, little-endian.
            shape: extents; their product times the element size must lie inside the file.
            mode: `readonly`, `copyonwrite` (writes stay in this process) or `readwrite` (writes reach the file).
            offset: first byte.

        Raises:
            OSError: the file cannot be opened.
            ValueError: unknown mode, or the part reaches past the end of the file.
        """
        if mode not in _MAP_MODES:
            raise ValueError(f"mode {mode!r} is unknown; there is: {', '.join(_MAP_MODES)}")
        extents = tuple(operator.index(extent) for extent in shape)
        if offset < 0 or any(extent < 0 for extent in extents):
            raise ValueError(f"offset {offset} or shape {extents} is negative")
        num_bytes, size = math.prod(extents) * dtype.size_in_bytes, Path(filename).stat().st_size
        if offset + num_bytes > size:
            raise ValueError(f"{filename}: bytes {offset} to {offset + num_bytes} are asked for, the file has {size}")
        if num_bytes == 0:
            return cls(dtype, extents)
        # The stub wants the mode as a literal; here it comes out of a table.
        raw: Any = np.memmap(filename, np.uint8, _MAP_MODES[mode], offset, (num_bytes,))  # type: ignore[call-overload]
        return cls._wrap(np.asarray(raw).view(dtype.to_numpy()).reshape(extents))

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> DType:
        """Element type."""
        return self._dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of each axis."""
        return tuple(self._array.shape)

    @property
    def rank(self) -> int:
        """Number of axes."""
        return self._array.ndim

    @property
    def num_elements(self) -> int:
        """Number of elements: the product of the extents."""
        return self._array.size

    @property
    def element_size(self) -> int:
        """Bytes of one element."""
        return self._dtype.size_in_bytes

    @property
    def device(self) -> Device:
        """Where the memory is."""
        return self._device

    @property
    def is_host(self) -> bool:
        """Whether the memory is the process's own."""
        return self._device.is_host

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie one after the other, last axis fastest."""
        return bool(self._array.flags.c_contiguous)

    @property
    def pinned(self) -> bool:
        """Whether the memory is page-locked: never."""
        return False

    def __len__(self) -> int:
        return len(self._array)

    def __repr__(self) -> str:
        return f"Buffer({self._dtype}, {list(self.shape)}, {self._device})"

    # -- its contents --------------------------------------------------------------------------------------------------

    def to_numpy(self) -> Array:
        """The contents as a NumPy array that shares the memory."""
        self._device.synchronize()
        return self._array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self._array, dtype=dtype, copy=copy)

    def __dlpack__(self, **request: Any) -> object:
        """A DLPack capsule that shares the memory; see `puna.driver.dlpack.export_array` for what it refuses."""
        return dlpack.export_array(self._array, self._dtype, **request)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (dlpack.CPU_DEVICE_TYPE, 0)

    def item(self) -> Any:
        """The only element, as a Python number.

        Raises:
            ShapeError: there is not exactly one element.
        """
        if self.num_elements != 1:
            raise ShapeError("a buffer for item()", self.shape, "one element")
        value = self._array.reshape(()).astype(np.float64) if self._dtype in _NEEDS_WIDENING else self._array
        return value.item()

    def __getitem__(self, index: Any) -> Buffer:
        """The part at integers, slices and `...`, as a buffer that shares the memory.

        Raises:
            TypeError: an index of another kind (those would copy).
            IndexError: an integer outside its axis, or more indices than axes.
        """
        return Buffer._wrap(self._array[_basic_index(index)], self._device)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Writes a number, array or buffer to the part at integers, slices and `...`.

        Raises:
            TypeError: an index of another kind.
            ValueError: the value's shape does not fit, or the buffer is read-only.
        """
        self._array[_basic_index(index)] = value._array if isinstance(value, Buffer) else value

    # -- copies and views ----------------------------------------------------------------------------------------------

    @overload
    def to(self, device: Device) -> Buffer: ...
    @overload
    def to(self, device: Sequence[Device]) -> list[Buffer]: ...

    def to(self, device: Device | Sequence[Device]) -> Buffer | list[Buffer]:
        """This buffer on another device: the same object if it is there already, else a copy. A list gives a list."""
        if not isinstance(device, Device):
            return [self.to(each) for each in device]
        if device == self._device:
            return self
        return Buffer._wrap(self._array.copy(), device)

    def copy(self) -> Buffer:
        """A contiguous copy on the same device."""
        return Buffer._wrap(np.array(self._array, order="C"), self._device)

    def contiguous(self) -> Buffer:
        """This buffer if it is contiguous, else a contiguous copy."""
        return self if self.is_contiguous else self.copy()

    def inplace_copy_from(self, source: Buffer) -> None:
        """Overwrites the contents with those of a buffer of the same shape and type.

        Raises:
            ShapeError, DTypeError: the source is of another shape or type.
            ValueError: this buffer is read-only.
        """
        if source.shape != self.shape:
            raise ShapeError("the source of a copy", source.shape, self.shape)
        if source.dtype is not self._dtype:
            raise DTypeError("the source of a copy", source.dtype, self._dtype)
        self._array[...] = source._array

    def view(self, dtype: DType, shape: Sequence[int] | None = None) -> Buffer:
        """The same bytes as another type or shape.

        Args:
            dtype: element type of the view.
            shape: its extents; without them only the last axis changes, in proportion to the element sizes.

        Raises:
            ValueError: the buffer is not contiguous.
            ShapeError: the bytes are not as many as the shape takes.
        """
        if not self.is_contiguous:
            raise ValueError(f"{self!r} is not contiguous; take contiguous() first")
        num_bytes = self.num_elements * self.element_size
        if shape is None:
            row_bytes = (self.shape[-1] if self.rank else 1) * self.element_size
            extents = (*self.shape[:-1], row_bytes // dtype.size_in_bytes) if self.rank else ()
        else:
            extents = tuple(operator.index(extent) for extent in shape)
        if math.prod(extents) * dtype.size_in_bytes != num_bytes or any(extent < 0 for extent in extents):
            raise ShapeError(f"a view as {dtype}", extents, f"{num_bytes} bytes")
        flat = self._array.reshape(-1).view(np.uint8)
        return Buffer._wrap(flat.view(dtype.to_numpy()).reshape(extents), self._device)


# `item()` of these would give a NumPy scalar of an `ml_dtypes` type; every value of theirs is a Python float.
_NEEDS_WIDENING: Final = frozenset(d for d in DType if d.is_float) - {DType.float16, DType.float32, DType.float64}


def _basic_index(index: Any) -> tuple[Any, ...]:
    """The index as a tuple that always gives a view: integers, slices, and one `...` at the latest at the end."""
    parts = index if isinstance(index, tuple) else (index,)
    checked: list[Any] = []
    for part in parts:
        if part is Ellipsis or isinstance(part, slice):
            checked.append(part)
        elif isinstance(part, int | np.integer) and not isinstance(part, bool):
            checked.append(int(part))
        else:
            raise TypeError(f"a buffer is indexed by integers, slices and ..., not by {type(part).__name__}")
    return tuple(checked) if Ellipsis in checked else (*checked, Ellipsis)
