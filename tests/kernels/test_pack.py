"""Packed matrices: nothing is lost, and their size is the one the layouts promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from puna import _native
from support import ggml_blocks
from support.exact import same_bits

# Bytes of sixteen rows of 256 columns.
PANEL_BYTES = {
    "F32": 16384,
    "F16": 8192,
    "BF16": 8192,
    "Q4_0": 4 * 576,
    "Q4_1": 4 * 640,
    "Q5_0": 4 * 704,
    "Q5_1": 4 * 768,
    "Q8_0": 4 * 1088,
    "IQ4_NL": 4 * 576,
    "MXFP4": 4 * 576,
    "Q2_K": 1600,
    "Q3_K": 1856,
    "Q4_K": 2368,
    "Q5_K": 2880,
    "Q6_K": 3392,
    "IQ4_XS": 2240,
}


@pytest.mark.parametrize("precision", ["auto", "float32"])
@pytest.mark.parametrize("format", _native.FORMATS)
def test_rows_come_back_bit_for_bit(format: str, precision: str) -> None:
    random = np.random.default_rng(1)
    rows = 37
    cols = {1: 77, 32: 96, 64: 192}.get(ggml_blocks.block_shape(format)[0], 768)
    data = random.integers(0, 256, (rows, ggml_blocks.row_bytes(format, cols)), dtype=np.uint8)
    matrix = _native.PackedMatrix(format, data, rows, cols, precision, 2)
    ids = np.array([0, 36, 16, 15, 0, 31], dtype=np.int64)
    assert same_bits(matrix.rows_f32(ids), _native.dequantize(format, data, cols)[ids])


@pytest.mark.parametrize("format", _native.FORMATS)
def test_size_and_partner(format: str) -> None:
    data = np.zeros((33, ggml_blocks.row_bytes(format, 256)), dtype=np.uint8)
    matrix = _native.PackedMatrix(format, data, 33, 256)
    assert (matrix.format, matrix.rows, matrix.cols) == (format, 33, 256)
    assert matrix.nbytes == (3 * PANEL_BYTES[format] if format in PANEL_BYTES else data.nbytes)
    assert matrix.partner == ("a8" if format in ggml_blocks.INTEGER_FORMATS else "f32")
    assert matrix.partner == _native.format_info(format)[2]
    exact = _native.PackedMatrix(format, data, 33, 256, "float32")
    assert exact.partner == "f32"
    assert exact.nbytes == (data.nbytes if matrix.partner == "a8" else matrix.nbytes)


def test_threads_pack_alike() -> None:
    random = np.random.default_rng(2)
    data = ggml_blocks.random_blocks(random, "Q5_K", 100, 512)
    ids = np.arange(100, dtype=np.int64)
    one, three = (_native.PackedMatrix("Q5_K", data, 100, 512, "auto", threads) for threads in (1, 3))
    assert same_bits(one.rows_f32(ids), three.rows_f32(ids))


@pytest.mark.parametrize("precision", ["auto", "float32"])
@pytest.mark.parametrize("format", _native.FORMATS)
def test_a_mapped_matrix_is_the_packed_one(format: str, precision: str, tmp_path: Path) -> None:
    rows, cols = 37, {1: 77, 32: 96, 64: 192}.get(ggml_blocks.block_shape(format)[0], 768)
    data = ggml_blocks.random_blocks(np.random.default_rng(4), format, rows, cols)
    packed = _native.PackedMatrix(format, data, rows, cols, precision, 2)
    (tmp_path / "f").write_bytes(bytes(128) + bytes(memoryview(packed)))
    mapped = _native.PackedMatrix.mapped(format, _native.MappedFile(tmp_path / "f"), 128, rows, cols, precision)
    assert (mapped.format, mapped.rows, mapped.cols, mapped.partner) == (format, rows, cols, packed.partner)
    assert bytes(memoryview(mapped)) == bytes(memoryview(packed))
    ids = np.arange(rows)
    assert same_bits(mapped.rows_f32(ids), packed.rows_f32(ids))
    assert memoryview(mapped).readonly


def test_what_cannot_be_mapped_as_a_matrix(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(576 + 64))
    file = _native.MappedFile(tmp_path / "f")
    assert _native.PackedMatrix.mapped("Q4_0", file, 64, 16, 64).nbytes == 576
    for offset in (-64, 65, 128, 704, 2**62):
        with pytest.raises(ValueError):
            _native.PackedMatrix.mapped("Q4_0", file, offset, 16, 64)
    with pytest.raises(ValueError, match="precision"):
        _native.PackedMatrix.mapped("Q4_0", file, 0, 16, 32, "int8")
    with pytest.raises(ValueError, match="whole blocks"):
        _native.PackedMatrix.mapped("Q4_0", file, 0, 16, 33)


def test_refusals() -> None:
    data = np.zeros((2, 18), dtype=np.uint8)
    with pytest.raises(ValueError, match="Q9"):
        _native.PackedMatrix("Q9", data, 2, 32)
    with pytest.raises(ValueError, match="precision"):
        _native.PackedMatrix("Q4_0", data, 2, 32, "int8")
    for rows, cols in ((2, 64), (3, 32), (2, 16), (0, 32), (2, 0), (-2, 32), (2**40, 2**40)):
        with pytest.raises(ValueError):
            _native.PackedMatrix("Q4_0", data, rows, cols)
    matrix = _native.PackedMatrix("Q4_0", data, 2, 32)
    for bad in (-1, 2):
        with pytest.raises(ValueError, match="ids"):
            matrix.rows_f32(np.array([0, bad], dtype=np.int64))
