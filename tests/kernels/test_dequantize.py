"""Dequantization against the `gguf` package, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from puna import _native
from support import ggml_blocks
from support.exact import same_bits


@pytest.mark.parametrize("format", _native.FORMATS)
def test_any_bytes_give_what_gguf_gives(format: str) -> None:
    random = np.random.default_rng(0)
    elements, size = ggml_blocks.block_shape(format)
    cols = 3 * elements if elements > 1 else 97
    data = random.integers(0, 256, (640, cols // elements * size), dtype=np.uint8)
    with np.errstate(all="ignore"):  # scales are any bytes too: infinite, subnormal, not a number
        expected = ggml_blocks.dequantized(format, data, cols)
    assert same_bits(_native.dequantize(format, data, cols), expected)


def test_every_type_of_the_package_is_known() -> None:
    sizes = {kind.name: tuple(size) for kind, size in gguf.GGML_QUANT_SIZES.items()}
    # Integers are no weights; Q8_1 holds activations and Q1_0 has no published reading.
    others = {"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q1_0"}
    assert set(_native.FORMATS) == set(sizes) - others
    for format in _native.FORMATS:
        assert _native.format_info(format)[:2] == sizes[format]


def test_hand_checked_blocks() -> None:
    q4_0 = np.array([[0x00, 0x38, 0x2F] + [0x88] * 15], dtype=np.uint8)
    values = _native.dequantize("Q4_0", q4_0, 32)
    assert values[0, 0] == 3.5 and values[0, 16] == -3.0 and values[0, 1] == 0.0

    q4_k = np.zeros((1, 144), dtype=np.uint8)
    q4_k[0, :2] = [0x00, 0x3C]  # d = 1
    q4_k[0, 2:4] = [0x00, 0x3C]  # dmin = 1
    q4_k[0, 4:16] = [129, 130, 131, 196, 5, 6, 7, 136, 145, 162, 179, 255]
    q4_k[0, 16:] = 0x11  # every code is 1
    scales, mins = [1, 2, 3, 4, 33, 34, 35, 63], [5, 6, 7, 8, 9, 10, 11, 47]
    expected = [scale - low for scale, low in zip(scales, mins, strict=True)]
    assert _native.dequantize("Q4_K", q4_k, 256)[0, ::32].tolist() == expected


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"Q9_K.*there is.*Q4_K"):
        _native.dequantize("Q9_K", np.zeros((1, 18), dtype=np.uint8), 32)
    with pytest.raises(ValueError, match="multiple of 32"):
        _native.dequantize("Q4_0", np.zeros((1, 18), dtype=np.uint8), 33)
    with pytest.raises(ValueError, match="bytes"):
        _native.dequantize("Q4_0", np.zeros((1, 17), dtype=np.uint8), 32)
