"""Random weights in every block format: random codes, and scales that give values of about the wanted size."""

from __future__ import annotations

from typing import Any

import numpy as np

from puna.graph.quantization import QuantizationEncoding
from puna.graph.weights.weight_data import WeightData

# Per format: where its half-precision fields are in a block, and what each is per unit of standard deviation.
_FIELDS: dict[str, tuple[tuple[int, float], ...]] = {
    "Q4_0": ((0, 1 / 4.6),),
    "Q4_1": ((0, 1 / 4.6), (2, -7.5 / 4.6)),
    "Q5_0": ((0, 1 / 9.2),),
    "Q5_1": ((0, 1 / 9.2), (2, -15.5 / 9.2)),
    "Q8_0": ((0, 1 / 74),),
    "IQ4_NL": ((0, 1 / 70),),
    "IQ4_XS": ((0, 1 / 1290),),
    "IQ3_S": ((0, 1 / 170),),
    "Q2_K": ((80, 1 / 14), (82, 1.5 / 14)),
    "Q3_K": ((108, 1 / 42),),
    "Q4_K": ((0, 1 / 140), (2, 7.5 / 140)),
    "Q5_K": ((0, 1 / 280), (2, 15.5 / 280)),
    "Q6_K": ((208, 1 / 1365),),
}


def random_weight(random: np.random.Generator, name: str, format: str, rows: int, cols: int) -> WeightData:
    """A matrix in a block format, its values around zero with a standard deviation of about `cols ** -0.5`."""
    encoding = QuantizationEncoding(format)
    per_row = cols // encoding.elements_per_block
    blocks = random.integers(0, 256, (rows, per_row, encoding.block_size), dtype=np.uint8)
    if format == "MXFP4":  # a power of two
        blocks[..., 0] = 128 + np.rint(np.log2(cols**-0.5 / 5.85)) + random.integers(-1, 2, (rows, per_row))
    for offset, factor in _FIELDS.get(format, ()):
        scales = cols**-0.5 * factor * random.uniform(0.7, 1.3, (rows, per_row, 1))
        blocks[..., offset : offset + 2] = scales.astype("<f2").view(np.uint8)
    return WeightData.from_blocks(blocks.reshape(rows, -1), name, encoding)


def quantized(weights: dict[str, WeightData], format: str, seed: int = 0) -> dict[str, WeightData]:
    """Weights whose matrices are replaced by random ones of a format (plain formats: by conversion)."""
    random = np.random.default_rng(seed)
    plain: dict[str, Any] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    found: dict[str, WeightData] = {}
    for name, weight in weights.items():
        if len(weight.shape) != 2:
            found[name] = weight
        elif format in plain:
            found[name] = weight.astype(type(weight.dtype)(plain[format]))
        else:
            found[name] = random_weight(random, name, format, *weight.shape)
    return found
