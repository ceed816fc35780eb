"""Quantizers: never worse than the simple rule, the same bits whoever works, and refusals."""

from __future__ import annotations

import gguf
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from puna import _native
from support import ggml_blocks
from support.variants import VARIANTS

SEARCHED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
SIMPLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # for which the gguf package has a quantizer
BITS = {"Q2_K": 2, "Q3_K": 3, "Q4_0": 4, "Q4_1": 4, "Q4_K": 4, "IQ4_NL": 4, "IQ4_XS": 4}
BITS |= {"Q5_0": 5, "Q5_1": 5, "Q5_K": 5, "Q6_K": 6, "Q8_0": 8}

Floats = NDArray[np.float32]


def drawn(kind: str, rows: int, cols: int) -> Floats:
    random = np.random.default_rng(5)
    values = {
        "normal": lambda: random.standard_normal((rows, cols)),
        "heavy": lambda: random.standard_t(3, (rows, cols)),
        "shifted": lambda: random.standard_normal((rows, cols)) + 2.5,
    }[kind]()
    return (values * 0.02).astype(np.float32)


def errors(format: str, x: Floats, blocks: NDArray[np.uint8]) -> NDArray[np.float64]:
    return (ggml_blocks.dequantized(format, blocks, x.shape[1]).astype(np.float64) - x) ** 2


@pytest.mark.parametrize("kind", ["normal", "heavy", "shifted"])
@pytest.mark.parametrize("format", SIMPLE)
def test_no_block_is_worse_than_by_the_simple_rule(format: str, kind: str) -> None:
    x = drawn(kind, 24, 320)
    mine = errors(format, x, _native.quantize(format, x)).reshape(-1, 32).sum(1)
    simple = gguf.quantize(x, gguf.GGMLQuantizationType[format])
    theirs = errors(format, x, simple).reshape(-1, 32).sum(1)
    assert (mine <= theirs * 1.02 + 1e-12).all()  # float16 scales are rounded after the search
    assert mine.sum() < 0.99 * theirs.sum()


@pytest.mark.parametrize("format", SEARCHED)
def test_error_of_normal_weights(format: str) -> None:
    x = drawn("normal", 16, 512)
    relative = errors(format, x, _native.quantize(format, x)).sum() / (x.astype(np.float64) ** 2).sum()
    # A uniform quantizer of b bits over ±2.7 deviations has an error of (5.4 / 2**b)² / 12.
    assert relative < 1.0 * (5.4 / 2 ** BITS[format]) ** 2 / 12


@pytest.mark.parametrize("format", SEARCHED)
def test_what_a_format_holds_comes_back(format: str) -> None:
    blocks = ggml_blocks.random_blocks(np.random.default_rng(6), format, 8, 512)
    x = ggml_blocks.dequantized(format, blocks, 512)
    relative = errors(format, x, _native.quantize(format, x)).sum() / (x.astype(np.float64) ** 2).sum()
    # Of eight bits the codes are not found again where the largest is none of ±127; of the others most are.
    assert relative < {2: 0.02, 3: 0.01, 4: 2e-3, 5: 1e-3, 6: 2e-4, 8: 2e-5}[BITS[format]]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("format", SEARCHED)
def test_variants_and_threads_give_the_same_bytes(format: str, variant: str) -> None:
    x = drawn("heavy", 5, 768)
    x[1] = 0
    x[2] *= np.float32(1e-30)
    importance = np.random.default_rng(7).uniform(0, 3, 768).astype(np.float32)
    for columns in (None, importance):
        expected = _native.quantize(format, x, columns, variant="scalar", threads=1)
        assert np.array_equal(_native.quantize(format, x, columns, variant=variant, threads=3), expected)


@pytest.mark.parametrize("format", SEARCHED)
def test_rows_do_not_depend_on_their_neighbours(format: str) -> None:
    x = drawn("heavy", 7, 768)
    importance = np.linspace(0.5, 2, 768, dtype=np.float32)
    whole = _native.quantize(format, x, importance)
    assert np.array_equal(np.concatenate([_native.quantize(format, row[None], importance) for row in x]), whole)


@pytest.mark.parametrize("format", SEARCHED)
def test_important_columns_are_nearer(format: str) -> None:
    x = drawn("normal", 32, 512)
    importance = np.ones(512, np.float32)
    importance[::4] = 50
    plain, weighted = (errors(format, x, _native.quantize(format, x, w)) for w in (None, importance))
    assert weighted[:, ::4].sum() < plain[:, ::4].sum()
    assert (weighted * importance).sum() < (plain * importance).sum()
    assert np.array_equal(_native.quantize(format, x, importance * 4), _native.quantize(format, x, importance))


@pytest.mark.parametrize("format", SEARCHED)
def test_edges(format: str) -> None:
    elements = 256
    x = np.zeros((6, elements), np.float32)
    x[1] = 1e-42  # subnormal
    x[2] = -3.0  # constant
    x[3, 77] = 5.0  # alone
    x[4] = np.float32(2.0) ** np.arange(-120, 8, 0.5, dtype=np.float32)
    x[5, ::2] = 1000.0
    values = ggml_blocks.dequantized(format, _native.quantize(format, x), elements)
    assert np.isfinite(values).all() and not values[:2].any()
    assert np.allclose(values[2], -3.0, rtol=0.01)
    assert abs(values[3, 77] - 5.0) < 0.25 and abs(values[4].max() - x[4].max()) < 0.2 * x[4].max()
    assert np.abs(values[5] - x[5]).max() < 300.0


def test_float_formats_round_to_nearest_even() -> None:
    x = (np.random.default_rng(8).standard_normal((9, 77)) * 10.0 ** np.arange(-8, 1)[:, None]).astype(np.float32)
    assert np.array_equal(_native.quantize("F32", x).view(np.float32), x)
    assert np.array_equal(_native.quantize("F16", x).view(np.uint16), x.astype(np.float16).view(np.uint16))
    assert np.array_equal(
        _native.quantize("BF16", x).view(np.uint16), x.astype(ml_dtypes.bfloat16).view(np.uint16)
    )


def test_refusals() -> None:
    x = drawn("normal", 4, 256)
    with pytest.raises(ValueError, match="no quantizer for IQ2_XXS"):
        _native.quantize("IQ2_XXS", x)
    with pytest.raises(ValueError, match=r"Q9.*there is.*Q4_K"):
        _native.quantize("Q9", x)
    with pytest.raises(ValueError, match="255 columns are not whole blocks of 256"):
        _native.quantize("Q4_K", np.ascontiguousarray(x[:, :255]))
    with pytest.raises(ValueError, match="importance has 255 values"):
        _native.quantize("Q4_K", x, np.ones(255, np.float32))
    for bad in (-1.0, np.nan, np.inf):
        importance = np.ones(256, np.float32)
        importance[9] = bad
        with pytest.raises(ValueError, match=r"importance\[9\]"):
            _native.quantize("Q4_K", x, importance)
    with pytest.raises(ValueError, match="zero in all columns"):
        _native.quantize("Q4_K", x, np.zeros(256, np.float32))


@pytest.mark.parametrize("format", [*SEARCHED, "F16", "BF16"])
def test_values_that_cannot_be_held(format: str) -> None:
    for bad, text in ((np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")):
        x = drawn("normal", 40, 512)
        x[31, 300] = x[39, 0] = bad
        with pytest.raises(ValueError, match=f"row 1031, column 300 is {text}"):
            _native.quantize(format, x, first_row=1000, threads=2)
    x = drawn("normal", 4, 512)
    x[2, 256:] = 3e38
    if format != "BF16":
        with pytest.raises(ValueError, match=rf"row 2, column 256 is 3e\+38, too large for {format}"):
            _native.quantize(format, x)
