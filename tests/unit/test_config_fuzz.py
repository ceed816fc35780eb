"""Configurations of any content: a configuration comes out, or an error of ours."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.errors import PunaError
from puna.graph.weights import GGUFWeights
from puna.pipelines.architectures import register_all_models
from puna.pipelines.lib import PIPELINE_REGISTRY
from puna.pipelines.lib.huggingface_config import HuggingFaceConfig
from support.checkpoints import FAMILIES, ROPE_KINDS, tiny_config, tiny_tensors
from support.gguf_checkpoints import write_gguf
from support.llama_config import model_config, pipeline_config

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**63, 10**400, -(10**400)]),
    st.floats(),
    st.sampled_from(["silu", "yarn", "longrope", "linear", "dynamic", "llama3", "default", "sliding_attention", ""]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.dictionaries(st.sampled_from(["rope_type", "type", "factor", "rope_theta", "x"]), inner, max_size=3),
    ),
    max_leaves=8,
)
SECTION_KEYS = [
    "rope_type",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "short_factor",
    "long_factor",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "rope_theta",
    "partial_rotary_factor",
]
CONFIG_KEYS = sorted({key for family in FAMILIES for key in tiny_config(family)} | {"layer_types", "attention_bias"})


def try_config(read: Any) -> None:
    """Everything that is made of a configuration before a weight is read."""
    with suppress(PunaError):
        config = read()
        architecture = PIPELINE_REGISTRY.find(config)
        made = architecture.config.initialize(pipeline_config(model=model_config(config)))
        rope = made.rotary_embedding()  # type: ignore[attr-defined]
        for length in (1, 10_000):
            assert np.isfinite(rope.inv_freq(length)).all() and np.isfinite(rope.attention_factor(length))
        norm_method = architecture.pipeline_model.norm_method  # type: ignore[attr-defined]
        made.finalize(config, {}, "last_token", norm_method=norm_method)  # type: ignore[attr-defined]
        made.decoder_spec()  # type: ignore[attr-defined]


@pytest.fixture(scope="module", autouse=True)
def _registry() -> None:
    register_all_models()


@settings(max_examples=300, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    changes=st.dictionaries(st.sampled_from(CONFIG_KEYS), VALUES, max_size=3),
)
def test_any_values(family: str, changes: dict[str, Any]) -> None:
    try_config(lambda: HuggingFaceConfig(tiny_config(family) | changes))


@settings(max_examples=300, deadline=None)
@given(
    family=st.sampled_from(["llama", "qwen2", "phi3"]),
    rope=st.sampled_from(ROPE_KINDS),
    changes=st.dictionaries(st.sampled_from(SECTION_KEYS), VALUES, max_size=3),
)
def test_any_rotary_section(family: str, rope: str, changes: dict[str, Any]) -> None:
    config = tiny_config(family, rope)
    config["rope_scaling"] = config.get("rope_scaling", {}) | changes
    try_config(lambda: HuggingFaceConfig(config))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_in_a_json_file(tmp_path: Path, data: st.DataObject) -> None:
    text = bytearray(json.dumps(tiny_config("llama", "yarn")).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "config.json").write_bytes(text)
    try_config(lambda: HuggingFaceConfig.from_directory(tmp_path))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_in_gguf_metadata(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "source.gguf"
    if not path.exists():
        config = tiny_config("llama", "longrope", vocab_size=8, num_hidden_layers=1)
        write_gguf(path, config, tiny_tensors(config))
    content = bytearray(path.read_bytes())
    header = content.index(b"token_embd.weight")  # the keys come first
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(24, header))] = data.draw(st.sampled_from([0, 1, 2, 4, 6, 8, 127, 128, 255]))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(content)
    try_config(lambda: HuggingFaceConfig.from_gguf(GGUFWeights(broken)))
