"""Writing a GGUF file, tensor by tensor.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the bytes are laid out by the `gguf` package.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from puna.errors import InvalidRequestError

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["EncodedTensor", "MetadataValue", "Progress", "write_gguf"]

Array: TypeAlias = np.ndarray[Any, Any]
MetadataValue: TypeAlias = "bool | int | float | str | Array | Sequence[str]"
"""The value of a key. An int is written in the first of u32, i32, u64, i64 that holds it, a float as f32, an array with
its own element type."""
Progress: TypeAlias = Callable[[str, int, int], None]
"""Called before each tensor and at the end: name (empty at the end), bytes written, bytes there will be."""

_ARRAY_TYPES: Final = {
    "bool": "BOOL",
    "int8": "INT8",
    "uint8": "UINT8",
    "int16": "INT16",
    "uint16": "UINT16",
    "int32": "INT32",
    "uint32": "UINT32",
    "int64": "INT64",
    "uint64": "UINT64",
    "float32": "FLOAT32",
    "float64": "FLOAT64",
}
_INTEGERS: Final = (("UINT32", 0, 2**32), ("INT32", -(2**31), 0), ("UINT64", 0, 2**64), ("INT64", -(2**63), 0))
_SPARE_BYTES: Final = 64 << 20
"""What stays free on the disk."""


@dataclass(frozen=True)
class EncodedTensor:
    """A tensor as it will lie in the file.

    Attributes:
        name: Its name there.
        shape: Its logical shape, outermost axis first.
        format: Its GGML type by name: `F32`, `F16`, `BF16`, `Q4_K`, …
        blocks: Makes the bytes, in contiguous pieces of any element type. Called once, when its turn comes, so that one
            piece at a time is in memory.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    blocks: Callable[[], Iterable[Array]]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the file.

        Raises:
            ValueError: The format is unknown, or a row is not a whole number of its blocks.
        """
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        elements, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.format]]
        if self.shape[-1] % elements:
            raise ValueError(f"{self.name!r}: rows of {self.shape[-1]} are no multiple of {self.format}'s {elements}")
        return math.prod(self.shape) // elements * size


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, MetadataValue],
    tensors: Sequence[EncodedTensor],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Writes a GGUF file. It has its name only when all of it is on the disk; what goes wrong leaves nothing behind.

    Args:
        path: The file.
        metadata: Its keys; `general.architecture` is one of them. Lists without entries have no form and are left out.
        tensors: Its tensors, in order.
        overwrite: Whether a file of this name may be replaced.
        progress: Told how far it is.

    Raises:
        InvalidRequestError: The file exists and `overwrite` is not set, or there is no room for it.
        WeightsError: A tensor cannot be read.
        OSError: The system refuses to write.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    target = Path(path)
    if target.exists() and not overwrite:
        raise InvalidRequestError("exists; name another file, or ask for it to be replaced", param=str(target))
    total = sum(tensor.nbytes for tensor in tensors)
    _check_room(target, total)
    with _temporary(target) as name:
        writer = GGUFWriter(name, str(metadata["general.architecture"]))
        try:
            _add_metadata(writer, metadata)
            for tensor in tensors:
                # the writer takes shapes of blocks in bytes and computes the logical ones back
                kind = GGMLQuantizationType[tensor.format]
                shape = (*tensor.shape[:-1], tensor.nbytes // math.prod(tensor.shape[:-1]))
                is_plain = tensor.format in ("F32", "F16", "F64", "I8", "I16", "I32", "I64")
                dtype = np.dtype(np.float32 if is_plain else np.uint8)
                writer.add_tensor_info(tensor.name, tensor.shape if is_plain else shape, dtype, tensor.nbytes, kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            _write_tensors(writer, tensors, total, progress)
            writer.flush()
            assert writer.fout is not None
            os.fsync(writer.fout[0].fileno())
        finally:
            writer.close()


def _write_tensors(writer: GGUFWriter, tensors: Sequence[EncodedTensor], total: int, progress: Progress | None) -> None:
    assert writer.fout is not None
    file, done = writer.fout[0], 0
    writer.write_padding(file, file.tell())
    for tensor in tensors:
        if progress is not None:
            progress(tensor.name, done, total)
        written = 0
        for piece in tensor.blocks():
            data = np.ascontiguousarray(piece)
            file.write(data.reshape(-1).view(np.uint8).data)
            written += data.nbytes
        assert written == tensor.nbytes, f"{tensor.name}: {written} bytes of {tensor.nbytes}"
        writer.write_padding(file, written)
        done += written
    if progress is not None:
        progress("", done, total)


def _add_metadata(writer: GGUFWriter, metadata: Mapping[str, MetadataValue]) -> None:
    from gguf import GGUFValueType

    for key, value in metadata.items():
        if key == "general.architecture":  # the writer's own first key
            continue
        if isinstance(value, np.ndarray):
            if value.size:
                element = GGUFValueType[_ARRAY_TYPES[value.dtype.name]]
                writer.add_key_value(key, value.tolist(), GGUFValueType.ARRAY, sub_type=element)
        elif isinstance(value, str):
            writer.add_key_value(key, value, GGUFValueType.STRING)
        elif isinstance(value, Sequence):
            if len(value):
                writer.add_key_value(key, list(value), GGUFValueType.ARRAY, sub_type=GGUFValueType.STRING)
        else:
            writer.add_key_value(key, value, GGUFValueType[_number_type(key, value)])


def _number_type(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "BOOL"
    if isinstance(value, float):
        return "FLOAT32"
    if isinstance(value, int):
        for name, least, end in _INTEGERS:
            if least <= value < end:
                return name
    raise ValueError(f"{key} = {value!r} has no form in GGUF")


def _check_room(target: Path, total: int) -> None:
    if not target.parent.is_dir():
        raise InvalidRequestError(f"there is no directory {target.parent}", param=str(target))
    free = shutil.disk_usage(target.parent).free
    if total + _SPARE_BYTES > free:
        message = f"it will have {total / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left"
        raise InvalidRequestError(message, param=str(target))


@contextmanager
def _temporary(target: Path) -> Iterator[str]:
    """A file beside the target, which becomes it at the end, or is deleted."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(descriptor)
    try:
        yield name
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)  # mkstemp lets nobody else read it
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
