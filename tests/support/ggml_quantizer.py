"""llama.cpp's own quantizer: of rows, from the library of its bindings, and of whole files."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


class _Parameters(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    library.ggml_init.restype = ctypes.c_void_p
    library.ggml_init.argtypes = [_Parameters]
    library.ggml_init(_Parameters(1 << 20, None, False))  # fills the tables of float16
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, integer, integer, integer, pointer]
    return library


_GGML = _library()


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: int) -> None:
    """The bindings' own callback fails at lines that were cut within a character."""


def quantize_rows(format: str, x: Floats, importance: Floats | None = None) -> Bytes:
    """Rows as llama.cpp quantizes them: uint8 `[rows, row bytes]`."""
    kind = gguf.GGMLQuantizationType[format]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    out = np.empty((x.shape[0], x.shape[1] // elements * size), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    _GGML.ggml_quantize_chunk(int(kind), x.ctypes.data, out.ctypes.data, 0, *x.shape, weights)
    return out


def quantize_file(source: Path, target: Path, file_type: int) -> Path:
    """A file as llama.cpp quantizes it."""
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type
    parameters.nthread = 2
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    assert status == 0, f"llama.cpp cannot quantize {source.name} to file type {file_type}: {status}"
    return target
