"""The type of a value in a graph: elements, shape and device, with names for sizes that are known only at run time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from puna.dtype import DType
from puna.errors import ShapeError
from puna.graph.device import DeviceRef

__all__ = ["BATCH_SIZE", "LOGIT_ROWS", "TOTAL_SEQ_LEN", "Dim", "DimLike", "Shape", "TensorType"]


@dataclass(frozen=True, slots=True)
class Dim:
    """A size with a name, plus a constant: `Dim("batch_size") + 1` is the length of the row offsets.

    Attributes:
        name: Equal names within one graph stand for equal sizes.
        offset: What is added to the named size.
    """

    name: str
    offset: int = 0

    def __add__(self, offset: int) -> Dim:
        return Dim(self.name, self.offset + offset)

    def __str__(self) -> str:
        return f"{self.name} + {self.offset}" if self.offset else self.name


DimLike: TypeAlias = int | str | Dim
Shape: TypeAlias = tuple[int | Dim, ...]

BATCH_SIZE: Final = Dim("batch_size")
"""Requests in the step."""
TOTAL_SEQ_LEN: Final = Dim("total_seq_len")
"""Tokens in the step, all requests together."""
LOGIT_ROWS: Final = Dim("num_logit_rows")
"""Rows that `gather_variable` returns: requests times the step's `return_n_logits`."""


@dataclass(frozen=True, slots=True, init=False)
class TensorType:
    """Element type, shape and device of a value.

    Attributes:
        dtype: Type of the elements.
        shape: Sizes; a name stands for a size that is known when the graph runs.
        device: Where the value lives.

    Raises:
        ShapeError: a size is negative or a name is empty.
    """

    dtype: DType
    shape: Shape
    device: DeviceRef

    def __init__(self, dtype: DType, shape: Iterable[DimLike], device: DeviceRef | None = None) -> None:
        sizes = tuple(Dim(size) if isinstance(size, str) else size for size in shape)
        for size in sizes:
            if (not size.name) if isinstance(size, Dim) else size < 0:
                raise ShapeError("a tensor type", describe(sizes), "sizes of 0 and more, or names")
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "shape", sizes)
        object.__setattr__(self, "device", DeviceRef.CPU() if device is None else device)

    @property
    def rank(self) -> int:
        """How many dimensions there are."""
        return len(self.shape)

    @property
    def width(self) -> int:
        """The last size, which must be a number.

        Raises:
            ShapeError: there is no last size, or it has a name.
        """
        last = self.shape[-1] if self.shape else None
        if not isinstance(last, int):
            raise ShapeError("a row-wise operand", describe(self.shape), "a last size that is a number")
        return last

    def with_shape(self, *shape: DimLike) -> TensorType:
        """The same element type and device with another shape."""
        return TensorType(self.dtype, shape, self.device)

    def __str__(self) -> str:
        return f"{self.dtype}{describe(self.shape)}"


def describe(shape: Sequence[int | Dim]) -> str:
    """A shape as text: `[total_seq_len, 576]`."""
    return f"[{', '.join(map(str, shape))}]"


def bind(what: str, declared: TensorType, shape: Sequence[int], sizes: dict[str, int]) -> None:
    """Match an array's shape with its declared type and note the sizes of the names in it.

    Args:
        what: Name of the array for the error.
        declared: The type that the graph declares.
        shape: The shape at hand.
        sizes: Known sizes by name; new ones are added.

    Raises:
        ShapeError: another rank, another size, or a size that contradicts what is known.
    """
    if len(shape) != declared.rank:
        raise ShapeError(what, describe(tuple(shape)), describe(declared.shape))
    for got, wanted in zip(shape, declared.shape, strict=True):
        if isinstance(wanted, int):
            known = wanted
        else:
            known = sizes.setdefault(wanted.name, got - wanted.offset) + wanted.offset
        if got != known or got < 0 or (isinstance(wanted, Dim) and sizes[wanted.name] < 0):
            expected = describe(declared.shape)
            facts = ", ".join(f"{name} = {size}" for name, size in sizes.items() if size >= 0)
            raise ShapeError(what, describe(tuple(shape)), f"{expected} ({facts})" if facts else expected)


def resolve(shape: Shape, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape in numbers, once the sizes of its names are known."""
    return tuple(size if isinstance(size, int) else sizes[size.name] + size.offset for size in shape)
