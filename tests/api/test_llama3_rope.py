"""Rotary settings of `Llama3Config`: three spellings, six kinds, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from puna.errors import UnsupportedModelError
from puna.nn.rotary_embedding import (
    DynamicRopeScalingParams,
    LinearRopeScalingParams,
    Llama3RopeScalingParams,
    LongRoPEScalingParams,
    YarnRopeScalingParams,
)
from support.llama_config import hf_config, llama_config


class TestRope:
    """Rotary settings in their three spellings."""

    LLAMA3 = {  # noqa: RUF012 - a table, never changed
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }

    @pytest.mark.parametrize(
        "changes",
        [
            {"rope_scaling": {"type": "llama3", **LLAMA3}},
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, **LLAMA3}},
        ],
    )
    def test_three_spellings_say_the_same(self, changes: dict[str, Any]) -> None:
        config = llama_config(hf_config(**changes))
        assert config.rope_scaling_params == Llama3RopeScalingParams(8.0, 1.0, 4.0, 8192)
        assert config.longrope_scaling_params is None

    def test_the_base_is_read_from_both_places(self) -> None:
        assert llama_config(hf_config(rope_theta=5e5)).rope_theta == 5e5
        parameters = {"rope_type": "default", "rope_theta": 7e5}
        assert llama_config(hf_config(rope_theta=5e5, rope_parameters=parameters)).rope_theta == 7e5

    def test_default_is_no_scaling_even_where_rope_scaling_repeats_it(self) -> None:
        parameters = {"rope_type": "default", "rope_theta": 7e5}
        config = llama_config(hf_config(rope_parameters=parameters, rope_scaling=parameters))
        assert config.rope_scaling_params is None

    @pytest.mark.parametrize(
        ("section", "expected"),
        [
            ({"rope_type": "linear", "factor": 4.0}, LinearRopeScalingParams(4.0)),
            ({"type": "dynamic", "factor": 2}, DynamicRopeScalingParams(2.0, 64)),
            (
                {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
                YarnRopeScalingParams(4.0, 32.0, 1.0, 16),
            ),
            (
                {"rope_type": "yarn", "original_max_position_embeddings": 16, "beta_fast": 8, "truncate": False},
                YarnRopeScalingParams(4.0, 8.0, 1.0, 16, truncate=False),
            ),
        ],
    )
    def test_kinds_that_the_original_ignores_are_read(self, section: dict[str, Any], expected: object) -> None:
        assert llama_config(hf_config(rope_scaling=section)).rope_scaling_params == expected

    def test_longrope_has_a_field_of_its_own(self) -> None:
        section = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
        config = llama_config(hf_config(rope_scaling=section, original_max_position_embeddings=16))
        assert config.rope_scaling_params is None
        assert config.longrope_scaling_params == LongRoPEScalingParams([1.0] * 4, [2.0] * 4, 16, 64)

    def test_longropes_factor_stays_out_of_the_attention_multiplier(self) -> None:
        """The original stores `sqrt(1/D) * a`; the reference multiplies cosine and sine by a instead."""
        section = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
        config = llama_config(
            hf_config(
                head_dim=96,
                rope_scaling=section,
                max_position_embeddings=131072,
                original_max_position_embeddings=4096,
            )
        )
        factor = config.rotary_embedding().attention_factor(1)
        assert factor == pytest.approx(1.1902381, abs=1e-7)
        assert config.attention_multiplier == pytest.approx(0.1020621, abs=1e-7)
        assert config.attention_multiplier * factor == pytest.approx(0.1214782, abs=1e-7)

    def test_a_checkpoints_own_multiplier_survives_longrope(self) -> None:
        section = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
        config = llama_config(hf_config(rope_scaling=section, attention_multiplier=0.5))
        assert config.attention_multiplier == 0.5

    @pytest.mark.parametrize("section", [{"rope_type": "spiral"}, {"type": "mrope", "factor": 2.0}])
    def test_an_unknown_kind_is_refused_by_name(self, section: dict[str, Any]) -> None:
        with pytest.raises(UnsupportedModelError, match="rope_type"):
            llama_config(hf_config(rope_scaling=section))

    def test_a_section_without_a_kind_is_refused(self) -> None:
        with pytest.raises(ValueError, match="rope_scaling"):
            llama_config(hf_config(rope_scaling={"factor": 2.0}))

    def test_settings_per_layer_type_are_refused(self) -> None:
        section = {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
        with pytest.raises(UnsupportedModelError, match="rope_parameters"):
            llama_config(hf_config(rope_parameters=section))

    def test_a_missing_number_is_named(self) -> None:
        with pytest.raises(UnsupportedModelError, match="factor"):
            llama_config(hf_config(rope_scaling={"rope_type": "linear"}))

    def test_llama3_frequencies_have_the_documented_values(self) -> None:
        config = llama_config(
            hf_config(
                rope_theta=500000.0,
                head_dim=128,
                max_position_embeddings=131072,
                rope_scaling={"rope_type": "llama3", **self.LLAMA3},
            )
        )
        scaled = config.rotary_embedding().inv_freq(1)
        expected = {
            0: 1.0,
            16: 0.0376060309,
            28: 0.0032114460,
            29: 0.0021665708,
            32: 0.0005248462,
            34: 0.0001785078,
            35: 0.0000955621,
            63: 3.0689260e-7,
        }
        for pair, value in expected.items():
            assert scaled[pair] == pytest.approx(value, rel=1e-6)
        plain = llama_config(hf_config(rope_theta=500000.0, head_dim=128)).rotary_embedding().inv_freq(1)
        for pair, value in {29: 0.0026160993, 32: 0.0014142136, 35: 0.0007644970, 63: 2.4551408e-6}.items():
            assert plain[pair] == pytest.approx(value, rel=1e-6)
