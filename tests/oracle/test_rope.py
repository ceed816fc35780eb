"""Rotary embeddings against transformers' own functions, for every kind of scaling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from puna.nn.rotary_embedding import (
    DynamicRopeScalingParams,
    LinearRopeScalingParams,
    Llama3RopeScalingParams,
    LongRoPEScalingParams,
    RopeScalingParams,
    RotaryEmbedding,
    YarnRopeScalingParams,
)

pytestmark = pytest.mark.oracle

LISTS = ([1.0 + i / 7 for i in range(32)], [2.0 + i for i in range(32)])
YARN: dict[str, Any] = {"factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0}

CASES: dict[str, tuple[dict[str, Any], RopeScalingParams]] = {
    "linear": ({"factor": 4.0}, LinearRopeScalingParams(4.0)),
    "dynamic": ({"factor": 3.0}, DynamicRopeScalingParams(3.0, 16384)),
    "llama3": (
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        Llama3RopeScalingParams(8.0, 1.0, 4.0, 2048),
    ),
    "yarn": (YARN, YarnRopeScalingParams(8.0, 32.0, 1.0, 2048)),
    "yarn untruncated": (YARN | {"truncate": False}, YarnRopeScalingParams(8.0, 32.0, 1.0, 2048, truncate=False)),
    "yarn mscale": (
        YARN | {"mscale": 1.5, "mscale_all_dim": 0.5},
        YarnRopeScalingParams(8.0, 32.0, 1.0, 2048, mscale=1.5, mscale_all_dim=0.5),
    ),
    "yarn factor": (
        YARN | {"attention_factor": 1.7},
        YarnRopeScalingParams(8.0, 32.0, 1.0, 2048, attention_factor=1.7),
    ),
    "longrope": (
        {"short_factor": LISTS[0], "long_factor": LISTS[1]},
        LongRoPEScalingParams(LISTS[0], LISTS[1], 2048, 16384),
    ),
    "longrope factor": (
        {"short_factor": LISTS[0], "long_factor": LISTS[1], "factor": 3.0},
        LongRoPEScalingParams(LISTS[0], LISTS[1], 2048, 16384, factor=3.0),
    ),
}


@pytest.mark.parametrize("length", [100, 2048, 2049, 16384, 16385, 40000])
@pytest.mark.parametrize("case", CASES)
def test_frequencies_and_factor(case: str, length: int) -> None:
    extra, scaling = CASES[case]
    parameters = {"rope_type": case.split()[0], "rope_theta": 500000.0, **extra}
    if parameters["rope_type"] not in ("linear", "dynamic"):
        parameters["original_max_position_embeddings"] = 2048
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16384,
        rope_parameters=parameters,
    )
    theirs, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"), seq_len=length)
    ours = RotaryEmbedding(64, 64, 500000.0, scaling)
    np.testing.assert_allclose(ours.inv_freq(length), theirs.numpy(), rtol=3e-6)
    assert ours.attention_factor(length) == pytest.approx(factor, rel=1e-12)
