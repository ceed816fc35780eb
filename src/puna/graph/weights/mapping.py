"""A weight file in memory, without reading it."""

from __future__ import annotations

import os
import stat
import weakref
from pathlib import Path
from typing import Any, Final

import numpy as np

from puna import _native
from puna.errors import WeightsError

__all__ = ["PICKLE_SUFFIXES", "MappedWeights"]

PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class MappedWeights:
    """The bytes of one regular file, read only and zero-copy, for as long as this object or a view of it lives.

    A file may be cut or overwritten by another process while it is mapped. Its missing pages then read as zeros instead
    of ending the process, and `check` raises, so whoever has read data calls it before using what was read.

    Args:
        path: the file.

    Attributes:
        path: the file.
        data: its bytes.
        array: the same as uint8 `[size]`.
        size: how many they are.
        stamp: device, inode, size, and time of modification in ns, as they were when it was opened.
        header_bytes: how many bytes come before the tensors; whoever reads the format states it.

    Raises:
        WeightsError: the file is missing, cannot be read, is empty, is no regular file, or is a pickle by its name.
    """

    __slots__ = ("__weakref__", "_descriptor", "_map", "array", "data", "header_bytes", "path", "size", "stamp")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() in PICKLE_SUFFIXES:
            raise WeightsError(
                f"{self.path.suffix} files are pickles, which can run code when they are opened, and are never read; "
                "use safetensors or GGUF",
                file=self.path,
            )
        try:
            # Without O_NONBLOCK, opening a pipe would wait for its writer.
            self._descriptor: Final = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise WeightsError(f"cannot be opened: {reason}", file=self.path) from error
        weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise WeightsError("is not a regular file", file=self.path)
        if status.st_size == 0:
            raise WeightsError("is empty", file=self.path)
        self.stamp: Final = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        self.header_bytes = 0
        try:
            self._map: Final = _native.MappedFile(str(self.path))
        except (OSError, ValueError, RuntimeError) as error:  # the file went away since, or thousands are mapped
            raise WeightsError(f"cannot be mapped: {error}", file=self.path) from error
        self.data: Final[memoryview] = self._map.data
        self.array: Final[np.ndarray[Any, np.dtype[np.uint8]]] = np.frombuffer(self.data, np.uint8)
        self.size: Final[int] = self.array.size

    @property
    def damaged(self) -> bool:
        """Whether the file has another length or was written to since it was mapped, or a page of it was missing."""
        status = os.fstat(self._descriptor)
        return self._map.damaged or (status.st_size, status.st_mtime_ns) != self.stamp[2:]

    def release(self) -> None:
        """Give back the memory of pages that were read. They are read anew, mostly from the system's cache, on use."""
        self._map.release()

    def check(self, tensor: str | None = None) -> None:
        """Raises WeightsError if the file is damaged."""
        if self.damaged:
            raise WeightsError("the file was cut or changed while it was being read", file=self.path, tensor=tensor)
