"""Records of checkpoints whose codes and scales are separate tensors."""

from __future__ import annotations

from typing import Any

import pytest

from puna.dtype import DType
from puna.nn.quant_config import (
    InputScaleSpec,
    QuantConfig,
    QuantFormat,
    QuantizationConfig,
    ScaleGranularity,
    ScaleOrigin,
    WeightScaleSpec,
)

G = ScaleGranularity


def quant(fmt: QuantFormat, origin: ScaleOrigin, inputs: G, weights: G, blocks: Any = (None, None)) -> QuantConfig:
    return QuantConfig(
        input_scale=InputScaleSpec(granularity=inputs, origin=origin, dtype=DType.float32, block_size=blocks[0]),
        weight_scale=WeightScaleSpec(granularity=weights, dtype=DType.float32, block_size=blocks[1]),
        mlp_quantized_layers=frozenset({0}),
        attn_quantized_layers=frozenset({0}),
        format=fmt,
    )


def test_facts_that_follow() -> None:
    static = quant(QuantFormat.COMPRESSED_TENSORS_FP8, ScaleOrigin.STATIC, G.TENSOR, G.TENSOR)
    assert (static.is_static, static.is_dynamic, static.is_fp4) == (True, False, False)
    assert static.scales_granularity_mnk == (-1, -1, -1)
    rows = quant(QuantFormat.FBGEMM_FP8, ScaleOrigin.DYNAMIC, G.COLWISE, G.ROWWISE)
    assert (rows.is_dynamic, rows.scales_granularity_mnk) == (True, (1, 1, -1))
    blocks = quant(QuantFormat.BLOCKSCALED_FP8, ScaleOrigin.DYNAMIC, G.BLOCK, G.BLOCK, ((1, 128), (128, 128)))
    assert blocks.scales_granularity_mnk == (1, 128, 128)
    nvfp4 = quant(QuantFormat.NVFP4, ScaleOrigin.STATIC, G.TENSOR, G.TENSOR)
    assert (nvfp4.is_nvfp4, nvfp4.is_mxfp4, nvfp4.is_fp4) == (True, False, True)


@pytest.mark.parametrize("size", [None, (128,), (0, 128), [128, 128]])
def test_blocks_need_a_pair(size: Any) -> None:
    with pytest.raises(ValueError, match="block_size"):
        WeightScaleSpec(granularity=G.BLOCK, dtype=DType.float32, block_size=size)


def test_a_pair_without_blocks_has_no_meaning() -> None:
    with pytest.raises(ValueError, match="no meaning"):
        InputScaleSpec(granularity=G.TENSOR, origin=ScaleOrigin.STATIC, dtype=DType.float32, block_size=(1, 1))


def test_gptq_settings() -> None:
    made = QuantizationConfig(quant_method="gptq", bits=4, group_size=-1, sym=True)
    assert (made.desc_act, made.group_size) == (False, -1)
    assert QuantizationConfig(quant_method="gptq", bits=8, group_size=32, sym=False).bits == 8


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"quant_method": "awq"}, "awq"),
        ({"bits": 3}, "bits"),
        ({"group_size": 0}, "group_size"),
    ],
)
def test_gptq_refusals(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizationConfig(**{"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, **bad})
