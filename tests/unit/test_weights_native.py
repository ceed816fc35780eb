"""What weights need the native core for: dequantizing, and surviving a file that is cut while it is mapped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from puna.dtype import DType
from puna.errors import WeightsError
from puna.graph.quantization import QuantizationEncoding
from puna.graph.weights import GGUFWeights, SafetensorWeights, WeightData, load_weights
from support import weight_bytes as wb

PACKAGE_HAS = [
    encoding
    for encoding in QuantizationEncoding
    if encoding.is_gguf and gguf.GGMLQuantizationType[encoding.value] in gguf.quants._type_traits
]


@pytest.mark.parametrize("encoding", PACKAGE_HAS)
@pytest.mark.parametrize("shape", [(3,), (2, 2)])
def test_dequantized_bits_equal_the_gguf_packages(encoding: QuantizationEncoding, shape: tuple[int, ...]) -> None:
    kind = gguf.GGMLQuantizationType[encoding.value]
    rows = np.random.default_rng(7).integers(0, 256, (*shape, 3 * encoding.block_size), np.uint8)
    weight = WeightData.from_blocks(rows, "w", encoding)
    with np.errstate(all="ignore"):  # random bytes hold scales that are infinite or no numbers
        expected = gguf.quants.dequantize(rows, kind)
    found = weight.to_float32()
    assert found.shape == weight.shape == expected.shape and found.dtype == np.float32
    numbers = ~np.isnan(expected)
    assert numbers.mean() > 0.5
    assert np.array_equal(np.isnan(found), ~numbers)
    assert np.array_equal(found[numbers].view(np.uint32), expected[numbers].view(np.uint32))


def test_only_q8_k_is_missing_from_the_package() -> None:
    assert {e for e in QuantizationEncoding if e.is_gguf} - set(PACKAGE_HAS) == {QuantizationEncoding.Q8_K}


def test_q8_k() -> None:
    codes = np.arange(-128, 128).astype(np.int8)
    block = np.frombuffer(np.float32(0.25).tobytes() + codes.tobytes() + bytes(32), np.uint8)
    weight = WeightData.from_blocks(block[None], "w", QuantizationEncoding.Q8_K)
    assert weight.to_float32().tolist() == [(codes * 0.25).tolist()]


def test_hand_checked_q4_0() -> None:
    block = np.frombuffer(bytes([0x00, 0x38, 0x2F]) + bytes([0x88] * 15), np.uint8)
    values = WeightData.from_blocks(block[None], "w", QuantizationEncoding.Q4_0).to_float32()[0]
    assert (values[0], values[16]) == (3.5, -3.0)
    assert not np.delete(values, [0, 16]).any()


def test_hand_checked_q4_k_scales() -> None:
    scales = bytes([129, 130, 131, 196, 5, 6, 7, 136, 145, 162, 179, 255])
    one = np.float16(1).tobytes()
    block = np.frombuffer(one + one + scales + bytes([0x11] * 128), np.uint8)
    values = WeightData.from_blocks(block[None], "w", QuantizationEncoding.Q4_K).to_float32().reshape(8, 32)
    pairs = [(1, 5), (2, 6), (3, 7), (4, 8), (33, 9), (34, 10), (35, 11), (63, 47)]
    assert [(row[0], row.min() == row.max()) for row in values] == [(scale - low, True) for scale, low in pairs]


@pytest.mark.parametrize(
    ("name", "row_bytes"), [("Q4_0", 2304), ("Q4_K", 2304), ("Q5_K", 2816), ("Q6_K", 3360)]
)
def test_bytes_of_a_row_of_4096(name: str, row_bytes: int) -> None:
    weight = WeightData.from_blocks(np.zeros((1, row_bytes), np.uint8), "w", QuantizationEncoding[name])
    assert weight.shape == (1, 4096) and weight.to_float32().shape == (1, 4096)


@pytest.mark.parametrize("encoding", [e for e in QuantizationEncoding if e.is_gguf])
def test_native_block_figures_are_the_same(encoding: QuantizationEncoding) -> None:
    from puna import _native

    assert tuple(_native.format_info(encoding.value)[:2]) == (encoding.elements_per_block, encoding.block_size)


def test_astype_drops_the_encoding() -> None:
    block = np.frombuffer(bytes([0x00, 0x38]) + bytes([0x9F] * 16), np.uint8)
    weight = WeightData.from_blocks(np.stack([block, block]), "w", QuantizationEncoding.Q4_0)
    half = weight.astype(DType.bfloat16)
    assert (half.dtype, half.shape, half.quantization_encoding) == (DType.bfloat16, (2, 32), None)
    assert half.data[1].astype(np.float32).tolist() == [3.5] * 16 + [0.5] * 16


def test_blocks_of_any_stride() -> None:
    rows = np.random.default_rng(3).integers(0, 128, (6, 18), np.uint8)
    strided = WeightData.from_blocks(rows[::2], "w", QuantizationEncoding.Q4_0)
    dense = WeightData.from_blocks(rows[::2].copy(), "w", QuantizationEncoding.Q4_0)
    assert np.array_equal(strided.to_float32(), dense.to_float32())


# -- a file that is cut while it is mapped ----------------------------------------------------------------------------

PAGES = 64 * 4096


@pytest.mark.parametrize("suffix", ["gguf", "safetensors"])
def test_a_cut_file_ends_in_an_error(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{suffix}"
    data = np.ones(PAGES // 4, "<f4").tobytes()
    if suffix == "gguf":
        path.write_bytes(wb.gguf([], [wb.tensor("w", (PAGES // 4,))], data))
    else:
        path.write_bytes(wb.safetensors({"w": wb.entry("F32", [PAGES // 4], 0, PAGES)}, data))
    weights = load_weights(path)
    weight = weights["w"].data()
    assert weight.to_float32().sum() == PAGES // 4
    os.truncate(path, 4096)
    for read in (
        lambda: weight.to_float32().sum() and weight.check(),
        lambda: weight.astype(DType.float16),
        lambda: WeightData.concat([weight, weight], "ww"),
    ):
        with pytest.raises(WeightsError, match="was cut or changed while it was being read") as caught:
            read()
        assert caught.value.tensor == "w" and caught.value.file == str(path)


def test_a_file_cut_between_opening_and_reading_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from puna.graph.weights import gguf as gguf_module
    from puna.graph.weights import safetensors as safetensors_module
    from puna.graph.weights.mapping import MappedWeights

    class Cut(MappedWeights):
        """Another process cuts the file right after it was mapped."""

        __slots__ = ()

        def __init__(self, path: str | os.PathLike[str]) -> None:
            super().__init__(path)
            os.truncate(path, 0)

    monkeypatch.setattr(gguf_module, "MappedWeights", Cut)
    monkeypatch.setattr(safetensors_module, "MappedWeights", Cut)
    for suffix, reader in (("gguf", GGUFWeights), ("safetensors", SafetensorWeights)):
        path = tmp_path / f"model.{suffix}"
        path.write_bytes(wb.gguf([], [wb.tensor("w", (1,))], bytes(9999)) if suffix == "gguf" else bytes(9999))
        with pytest.raises(WeightsError, match="was cut or changed"):
            reader(path)


def test_other_bus_errors_still_end_the_process(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(wb.gguf([], [wb.tensor("w", (1,))], bytes(4)))
    code = """
import mmap, os, sys
from puna.graph.weights import load_weights
weights = load_weights(sys.argv[1])
with open(sys.argv[1] + ".other", "wb+") as file:
    file.truncate(1 << 16)
    other = mmap.mmap(file.fileno(), 0)
    file.truncate(0)
    print(other[0])
"""
    child = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, timeout=60)
    assert child.returncode == -7, child.stderr
