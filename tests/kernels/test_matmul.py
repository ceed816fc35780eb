"""Matrix products: exact integer sums, one order of addition, the same bits however the work is divided."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from puna import _native
from support import ggml_blocks, kernel_truth
from support.exact import fma, same_bits
from support.variants import SUPPORTED, VARIANTS, is_on_tiles

Floats = NDArray[np.float32]

STORED_FORMATS = tuple(
    format for format in _native.FORMATS if format not in ggml_blocks.INTEGER_FORMATS + ggml_blocks.FLOAT_FORMATS
)


def few_columns(format: str) -> int:
    """Some whole blocks; an odd number of them where two make a unit."""
    return {1: 131, 32: 96, 64: 192}.get(ggml_blocks.block_shape(format)[0], 512)


def integer_product(format: str, data: ggml_blocks.Bytes, x: Floats) -> Floats:
    """The accumulation rule of the integer formats, from the codes and scales of both sides."""
    cols = x.shape[1]
    terms, offset = ggml_blocks.integer_parts(format, data, cols)
    codes, da, scaled_sums = _native.quantize_a8(x, "scalar")
    blocks = codes.reshape(len(x), -1, 32).astype(np.int64)
    exact = [np.einsum("rbk,obk->rob", blocks, weights.reshape(len(data), -1, 32)) for weights, _ in terms]
    assert all(np.abs(sums).max() < 2**24 for sums in exact)  # exact in float32
    acc = np.zeros((len(x), len(data)), dtype=np.float32)
    for block in range(cols // 32):
        for sums, (_, scale) in zip(exact, terms, strict=True):
            value = sums[:, :, block].astype(np.float32) * scale[None, :, block]
            acc = fma(value, np.broadcast_to(da[:, None, block], acc.shape), acc)
        if offset is not None:
            acc = fma(np.broadcast_to(offset[None, :, block], acc.shape), scaled_sums[:, None, block], acc)
    return acc


def float_product(weights: Floats, x: Floats) -> Floats:
    acc = np.zeros((len(x), len(weights)), dtype=np.float32)
    for k in range(x.shape[1]):
        acc = fma(np.broadcast_to(weights[None, :, k], acc.shape), x[:, None, k], acc)
    return acc


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("format", ggml_blocks.INTEGER_FORMATS)
@pytest.mark.parametrize("rows", [1, 3, 11])
def test_two_terms_are_two_products(format: str, variant: str, rows: int) -> None:
    random = np.random.default_rng(5)
    cols = few_columns(format)
    data = ggml_blocks.random_blocks(random, format, 21, cols)
    x = random.standard_normal((rows, cols), dtype=np.float32)
    codes, scales, _ = _native.quantize_a8(x, variant)
    exact = codes.astype(np.float64) * np.repeat(scales, 32, axis=-1)
    rest = (x - exact).astype(np.float32)
    matrix = _native.PackedMatrix(format, data, 21, cols)
    got = _native.matmul([matrix], x, variant, 2, two_terms=True)
    assert same_bits(got, integer_product(format, data, x) + integer_product(format, data, rest))
    weights = _native.dequantize(format, data, cols).astype(np.float64)
    error = np.abs(got - x.astype(np.float64) @ weights.T)
    assert error.max() <= 2e-4 * np.linalg.norm(weights, axis=1).max()  # one term leaves some 100 times more


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("format", ggml_blocks.INTEGER_FORMATS)
def test_integer_formats_follow_their_rule(format: str, variant: str) -> None:
    random = np.random.default_rng(4)
    cols = few_columns(format)
    data = ggml_blocks.random_blocks(random, format, 21, cols)
    x = random.standard_normal((11, cols), dtype=np.float32)
    matrix = _native.PackedMatrix(format, data, 21, cols)
    assert same_bits(_native.matmul([matrix], x, variant, 1), integer_product(format, data, x))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("format", ggml_blocks.INTEGER_FORMATS)
def test_extreme_codes_do_not_saturate(format: str, variant: str) -> None:
    cols = few_columns(format)
    elements, size = ggml_blocks.block_shape(format)
    patterns = [0x00, 0xFF, 0x80, 0x7F, 0xF0, 0x0F]
    blocks = np.repeat(np.array(patterns, dtype=np.uint8), cols // elements * size).reshape(len(patterns), -1, size)
    ggml_blocks.set_scales(blocks, format, 0.25)
    data = blocks.reshape(len(patterns), -1)
    alternating = np.resize(np.array([1, -1], dtype=np.float32), cols)
    pairs = np.resize(np.array([1, 1, -1, -1], dtype=np.float32), cols)
    x = np.stack([np.ones(cols, dtype=np.float32), -np.ones(cols, dtype=np.float32), alternating, pairs, -pairs])
    matrix = _native.PackedMatrix(format, data, len(patterns), cols)
    for rows in (1, 2, 4, 5):
        product = _native.matmul([matrix], x[-rows:].copy(), variant, 1)
        assert same_bits(product, integer_product(format, data, x[-rows:].copy()))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("format", ggml_blocks.FLOAT_FORMATS + STORED_FORMATS)
def test_float_products_are_one_chain(format: str, variant: str) -> None:
    random = np.random.default_rng(5)
    cols = few_columns(format)
    data = ggml_blocks.random_blocks(random, format, 19, cols)
    x = random.standard_normal((6, cols), dtype=np.float32)
    matrix = _native.PackedMatrix(format, data, 19, cols)
    weights = ggml_blocks.dequantized(format, data, cols)
    rounded = kernel_truth.bf16_tile_product if is_on_tiles(variant, format) else kernel_truth.bf16_product
    expected = rounded(weights, x) if format == "BF16" else float_product(weights, x)
    assert same_bits(_native.matmul([matrix], x, variant, 1), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_weights_round_activations_unless_told_otherwise(variant: str) -> None:
    random = np.random.default_rng(5)
    data = ggml_blocks.random_blocks(random, "BF16", 40, 1024)
    x = random.standard_normal((12, 1024), dtype=np.float32)
    weights = ggml_blocks.dequantized("BF16", data, 1024)
    full = _native.matmul([_native.PackedMatrix("BF16", data, 40, 1024, "float32")], x, variant, 1)
    assert same_bits(full, float_product(weights, x))
    matrix = _native.PackedMatrix("BF16", data, 40, 1024)
    assert same_bits(_native.matmul([matrix], x, variant, 1, two_terms=True), full)
    exact = x.astype(np.float64) @ weights.astype(np.float64).T
    rounded = _native.matmul([matrix], x, variant, 1)
    error = np.sqrt(((rounded - exact) ** 2).mean() / (exact**2).mean())
    assert 1e-4 < error < 2.5e-3


@pytest.mark.parametrize("format", ggml_blocks.INTEGER_FORMATS)
def test_full_precision_is_the_product_of_the_dequantized(format: str) -> None:
    random = np.random.default_rng(6)
    cols = few_columns(format)
    data = ggml_blocks.random_blocks(random, format, 33, cols)
    values = _native.dequantize(format, data, cols)
    exact = _native.PackedMatrix(format, data, 33, cols, "float32")
    plain = _native.PackedMatrix("F32", values.view(np.uint8), 33, cols)
    x = random.standard_normal((9, cols), dtype=np.float32)
    for variant in SUPPORTED:
        assert same_bits(_native.matmul([exact], x, variant, 1), _native.matmul([plain], x, variant, 1))


@pytest.mark.parametrize("format", ggml_blocks.INTEGER_FORMATS)
def test_error_is_that_of_the_activations(format: str) -> None:
    random = np.random.default_rng(7)
    data = ggml_blocks.random_blocks(random, format, 64, 2048)
    x = random.standard_normal((16, 2048), dtype=np.float32)
    exact = x.astype(np.float64) @ ggml_blocks.dequantized(format, data, 2048).astype(np.float64).T
    product = _native.matmul([_native.PackedMatrix(format, data, 64, 2048)], x, _native.default_variant(), 1)
    assert np.sqrt(((product - exact) ** 2).mean() / (exact**2).mean()) < 7e-3


@settings(max_examples=60, deadline=None)
@given(
    format=st.sampled_from(ggml_blocks.INTEGER_FORMATS + ggml_blocks.FLOAT_FORMATS + ("IQ3_S", "NVFP4")),
    seed=st.integers(0, 2**32 - 1),
    outputs=st.integers(1, 70),
    rows=st.integers(1, 40),
    cut=st.integers(0, 40),
    threads=st.integers(1, 5),
)
def test_the_division_of_work_changes_no_bit(
    format: str, seed: int, outputs: int, rows: int, cut: int, threads: int
) -> None:
    random = np.random.default_rng(seed)
    cols = few_columns(format)
    data = ggml_blocks.random_blocks(random, format, outputs, cols)
    x = random.standard_normal((rows, cols), dtype=np.float32)
    matrix = _native.PackedMatrix(format, data, outputs, cols)
    whole = _native.matmul([matrix], x, SUPPORTED[0], 1)
    cut = min(cut, rows - 1)
    for variant in SUPPORTED:
        if is_on_tiles(variant, format):
            whole = _native.matmul([matrix], x, variant, 1)
        assert same_bits(_native.matmul([matrix], x, variant, threads), whole)
        assert same_bits(_native.matmul([matrix], x[cut:].copy(), variant, threads), whole[cut:])
        assert same_bits(_native.matmul([matrix], x[cut : cut + 1].copy(), variant, 1), whole[cut : cut + 1])


def test_many_rows_pass_through_the_cache_in_chunks() -> None:
    random = np.random.default_rng(8)
    for format in ("Q4_K", "F32"):
        data = ggml_blocks.random_blocks(random, format, 40, 2048)
        matrix = _native.PackedMatrix(format, data, 40, 2048)
        x = random.standard_normal((200, 2048), dtype=np.float32)
        whole = _native.matmul([matrix], x, _native.default_variant(), 2)
        for first in (0, 31, 96, 199):
            alone = _native.matmul([matrix], x[first : first + 1].copy(), _native.default_variant(), 1)
            assert same_bits(alone, whole[first : first + 1])


def test_several_matrices_are_their_outputs_in_a_row() -> None:
    random = np.random.default_rng(9)
    x = random.standard_normal((5, 512), dtype=np.float32)
    matrices = [
        _native.PackedMatrix(format, ggml_blocks.random_blocks(random, format, rows, 512), rows, 512)
        for format, rows in (("Q4_K", 20), ("Q6_K", 7), ("Q8_0", 33))
    ]
    for variant in SUPPORTED:
        together = _native.matmul(matrices, x, variant, 2)
        assert same_bits(together, np.hstack([_native.matmul([matrix], x, variant, 1) for matrix in matrices]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_that_is_not_finite_spoils_no_other(variant: str) -> None:
    random = np.random.default_rng(10)
    for format in ("Q4_1", "Q8_0", "Q6_K", "BF16"):
        cols = 256
        matrix = _native.PackedMatrix(format, ggml_blocks.random_blocks(random, format, 24, cols), 24, cols)
        x = random.standard_normal((8, cols), dtype=np.float32)
        clean = _native.matmul([matrix], x, variant, 1)
        x[3, 100] = np.nan
        product = _native.matmul([matrix], x, variant, 1)
        assert np.isnan(product[3]).all()
        assert same_bits(np.delete(product, 3, axis=0), np.delete(clean, 3, axis=0))
