"""Normalization against float64, and its bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from puna import _native
from support.native_steps import VARIANTS, Rig, bits, random_rows

Array = NDArray[Any]
WIDTHS = (1, 15, 16, 17, 64, 100, 576)


def expected(x: Array, kind: str, eps: float, weight: Array | None, bias: Array | None) -> Array:
    wide = x.astype(np.float64)
    if kind == "layer":
        wide = wide - wide.mean(axis=1, keepdims=True)
    out = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def run(x: Array, variant: str, threads: int = 1, **options: Any) -> Array:
    kind, eps = options.get("kind", "rms"), options.get("eps", 1e-5)
    rig, width = Rig(x, variant), x.shape[1]
    out = rig.x if options.get("in_place") else rig.buffer(width)
    rig.emit(
        "norm",
        x=rig.x,
        out=out,
        out_a8=-1,
        kind=kind,
        eps=eps,
        weight=rig.vector(options.get("weight")),
        bias=rig.vector(options.get("bias")),
        width=width,
    )
    rig.output(out, width)
    return rig.run(threads=threads)[0]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_equals_float64_and_every_variant_has_the_same_bits(kind: str, width: int) -> None:
    generator = np.random.default_rng(width)
    x, weight = random_rows(5, width), generator.standard_normal(width).astype(np.float32)
    bias = generator.standard_normal(width).astype(np.float32) if kind == "layer" else None
    results = [run(x, variant, kind=kind, weight=weight, bias=bias) for variant in VARIANTS]
    reference = expected(x, kind, 1e-5, weight, bias)
    np.testing.assert_allclose(results[0], reference, rtol=3e-6, atol=3e-6 * np.abs(reference).max())
    assert len({bits(result) for result in results}) == 1


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_works_without_weights_and_in_place(kind: str) -> None:
    x = random_rows(3, 50)
    plain = run(x, VARIANTS[-1], kind=kind)
    np.testing.assert_allclose(plain, expected(x, kind, 1e-5, None, None), rtol=1e-5, atol=1e-6)
    assert bits(run(x, VARIANTS[-1], kind=kind, in_place=True)) == bits(plain)


def test_known_values() -> None:
    x = np.array([[1, 2, 3, 4]], np.float32)
    rms, layer = (run(x, VARIANTS[-1], kind=kind)[0] for kind in ("rms", "layer"))
    np.testing.assert_allclose(rms, [0.365148, 0.730296, 1.095444, 1.460593], atol=1e-6)
    np.testing.assert_allclose(layer, [-1.341635, -0.447212, 0.447212, 1.341635], atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_row_has_the_same_bits_in_every_batch(threads: int) -> None:
    x = random_rows(21, 96)
    whole = run(x, VARIANTS[-1], threads)
    for row in (0, 7, 20):
        assert bits(run(x[row : row + 1], VARIANTS[-1])) == bits(whole[row : row + 1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_fused_codes_equal_those_of_the_separate_instruction(variant: str) -> None:
    """With `out` absent too: seen through a product, whose bits depend on every code, scale and sum."""
    x, width = random_rows(7, 96), 96
    matrix = _native.PackedMatrix("Q8_0", random_q8_0(24, width), 24, width, threads=1)
    results = []
    for with_codes, with_floats in ((True, True), (True, False), (False, True)):
        rig = Rig(x, variant)
        out, codes, y = rig.buffer(width), rig.codes(width), rig.buffer(24)
        norm = {"x": rig.x, "kind": "rms", "eps": 1e-5, "weight": -1, "bias": -1, "width": width}
        rig.emit("norm", out=out if with_floats else -1, out_a8=codes if with_codes else -1, **norm)
        if not with_codes:
            rig.emit("quantize", x=out, col=0, width=width, out_a8=codes, two_terms=False)
        rig.emit(
            "matmul",
            x=codes,
            width=width,
            weights=[rig.program.weight(matrix)],
            out=y,
            out_col=0,
            biases=[-1],
            clip=0.0,
            residual=-1,
            multiplier=1.0,
            two_terms=False,
        )
        rig.output(y, 24)
        results.append(bits(rig.run()[0]))
    assert len(set(results)) == 1


def random_q8_0(rows: int, cols: int) -> Array:
    generator = np.random.default_rng(4)
    blocks = np.empty((rows, cols // 32, 34), np.uint8)
    scales = generator.uniform(0.001, 0.1, (rows, cols // 32)).astype(np.float16)
    blocks[..., :2] = scales[..., None].view(np.uint8)
    blocks[..., 2:] = generator.integers(0, 256, (rows, cols // 32, 32), np.uint8)
    return blocks.reshape(rows, -1)
