"""How long a sequence of each kind of model may be."""

from __future__ import annotations

import pytest

from puna.errors import InvalidRequestError
from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.lib.huggingface_config import HuggingFaceConfig
from support.checkpoints import ORIGINAL_LENGTH, ROPE_KINDS, tiny_config
from support.llama_config import model_config, pipeline_config


def max_seq_len(rope: str, max_length: int | None) -> int:
    config = HuggingFaceConfig(tiny_config("llama", rope))
    return Llama3Config.calculate_max_seq_len(
        pipeline_config(model=model_config(config, max_length=max_length)), config
    )


@pytest.mark.parametrize("rope", ROPE_KINDS)
def test_the_configuration_bounds_the_length(rope: str) -> None:
    bound = tiny_config("llama", rope)["max_position_embeddings"]
    assert max_seq_len(rope, None) == bound
    assert max_seq_len(rope, bound) == bound
    if rope != "dynamic":
        with pytest.raises(InvalidRequestError, match="max_length"):
            max_seq_len(rope, bound + 1)


def test_dynamic_scaling_goes_beyond_by_its_factor() -> None:
    assert max_seq_len("dynamic", 2 * ORIGINAL_LENGTH) == 2 * ORIGINAL_LENGTH
    with pytest.raises(InvalidRequestError, match="max_length"):
        max_seq_len("dynamic", 2 * ORIGINAL_LENGTH + 1)
