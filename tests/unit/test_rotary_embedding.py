"""Rotary embedding: worked figures, and the transformers formulas written out once more for each kind of scaling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from puna.nn.rotary_embedding import (
    DynamicRopeScalingParams,
    FactorRopeScalingParams,
    LinearRopeScalingParams,
    Llama3RopeScalingParams,
    LongRoPEScalingParams,
    RotaryEmbedding,
    YarnRopeScalingParams,
)


def plain(theta: float, rot_dim: int) -> list[float]:
    return [theta ** (-2 * j / rot_dim) for j in range(rot_dim // 2)]


def test_plain_frequencies_are_powers_of_the_base() -> None:
    rope = RotaryEmbedding(128, 128, 500000.0)
    got = rope.inv_freq(10)
    assert got.dtype == np.float32 and got.shape == (64,)
    np.testing.assert_array_equal(got, np.float32(plain(500000.0, 128)))
    assert rope.attention_factor(10) == 1 and rope.regime(10**6) == 0


def test_partial_rotation_uses_the_rotated_width() -> None:
    np.testing.assert_array_equal(RotaryEmbedding(64, 16, 1e4).inv_freq(1), np.float32(plain(1e4, 16)))


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        (0, 1.0),
        (16, 0.0376060309),
        (28, 0.003211446),
        (29, 0.0021665708),
        (32, 0.0005248462),
        (34, 0.0001785078),
        (35, 9.55621e-05),
        (63, 3.068926e-07),
    ],
)
def test_llama3_worked_figures(pair: int, expected: float) -> None:
    rope = RotaryEmbedding(128, 128, 500000.0, Llama3RopeScalingParams(8.0, 1.0, 4.0, 8192))
    assert rope.inv_freq(1)[pair] == pytest.approx(expected, rel=1e-6)


def test_llama3_with_equal_bounds_has_no_blend() -> None:
    rope = RotaryEmbedding(64, 64, 10000.0, Llama3RopeScalingParams(4.0, 2.0, 2.0, 1024))
    base = np.array(plain(10000.0, 64))
    kept = 2 * math.pi / base < 512
    np.testing.assert_array_equal(rope.inv_freq(1), np.float32(np.where(kept, base, base / 4)))


def test_linear_and_factors_divide() -> None:
    base = np.array(plain(1e4, 8))
    np.testing.assert_array_equal(
        RotaryEmbedding(8, 8, 1e4, LinearRopeScalingParams(4.0)).inv_freq(1), np.float32(base / 4)
    )
    factors = [1.0, 2.0, 8.0, 3.0, 99.0]
    scaled = RotaryEmbedding(8, 8, 1e4, FactorRopeScalingParams(factors)).inv_freq(1)
    np.testing.assert_array_equal(scaled, np.float32(base / np.array(factors[:4])))


def test_longrope_takes_the_long_list_beyond_the_original_length() -> None:
    scaling = LongRoPEScalingParams([1.0, 1.5], [4.0, 8.0], 4096, 131072)
    rope = RotaryEmbedding(4, 4, 1e4, scaling)
    base = np.array(plain(1e4, 4))
    np.testing.assert_array_equal(rope.inv_freq(4096), np.float32(base / [1.0, 1.5]))
    np.testing.assert_array_equal(rope.inv_freq(4097), np.float32(base / [4.0, 8.0]))
    assert (rope.regime(1), rope.regime(4096), rope.regime(4097)) == (0, 0, 1)
    assert rope.attention_factor(1) == rope.attention_factor(9999) == pytest.approx(1.1902381, abs=1e-6)
    assert rope.request_length(prompt_length=4096, total_length=4097) == 4097


def test_longrope_without_stretch_or_with_a_given_factor() -> None:
    short = LongRoPEScalingParams([1.0], [1.0], 4096, 2048)
    assert RotaryEmbedding(2, 2, 1e4, short).attention_factor(1) == 1
    given = LongRoPEScalingParams([1.0], [1.0], 4096, 131072, attention_factor=1.25)
    assert RotaryEmbedding(2, 2, 1e4, given).attention_factor(1) == 1.25
    stretched = LongRoPEScalingParams([1.0], [1.0], 4096, 131072, factor=4.0)
    expected = math.sqrt(1 + math.log(4) / math.log(4096))
    assert RotaryEmbedding(2, 2, 1e4, stretched).attention_factor(1) == pytest.approx(expected)


def test_dynamic_base_follows_the_prompt() -> None:
    rope = RotaryEmbedding(64, 64, 1e4, DynamicRopeScalingParams(2.0, 2048))
    np.testing.assert_array_equal(rope.inv_freq(100), np.float32(plain(1e4, 64)))
    base = 1e4 * (2.0 * 3000 / 2048 - 1) ** (64 / 62)
    np.testing.assert_allclose(rope.inv_freq(3000), np.float32(plain(base, 64)), rtol=1e-7)
    assert (rope.regime(5), rope.regime(2048), rope.regime(3000)) == (2048, 2048, 3000)
    assert rope.request_length(prompt_length=3000, total_length=4000) == 3000


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_ramp(truncate: bool) -> None:
    scaling = YarnRopeScalingParams(16.0, 32.0, 1.0, 4096, truncate=truncate)
    got = RotaryEmbedding(64, 64, 1e4, scaling).inv_freq(1)

    def dim(rotations: float) -> float:
        return 64 * math.log(4096 / (rotations * 2 * math.pi)) / (2 * math.log(1e4))

    low, high = dim(32.0), dim(1.0)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    for j, inv in enumerate(plain(1e4, 64)):
        ramp = min(max((j - max(low, 0)) / (min(high, 63) - max(low, 0)), 0), 1)
        assert got[j] == pytest.approx(inv / 16 * ramp + inv * (1 - ramp), rel=1e-6)


def test_yarn_attention_factor() -> None:
    def factor(**kwargs: float) -> float:
        scaling = YarnRopeScalingParams(kwargs.pop("factor", 40.0), 32.0, 1.0, 4096, **kwargs)
        return RotaryEmbedding(64, 64, 1e4, scaling).attention_factor(1)

    assert factor() == pytest.approx(0.1 * math.log(40) + 1)
    assert factor(factor=0.5) == 1
    assert factor(attention_factor=1.5) == 1.5
    assert factor(mscale=1.0) == pytest.approx(0.1 * math.log(40) + 1)
    expected = (0.1 * 0.5 * math.log(40) + 1) / (0.1 * 0.8 * math.log(40) + 1)
    assert factor(mscale=0.5, mscale_all_dim=0.8) == pytest.approx(expected)


def test_only_two_kinds_depend_on_the_length() -> None:
    kinds = {
        None: False,
        LinearRopeScalingParams(2.0): False,
        YarnRopeScalingParams(16.0, 32.0, 1.0, 4096): False,
        DynamicRopeScalingParams(2.0, 2048): True,
    }
    for scaling, expected in kinds.items():
        assert RotaryEmbedding(8, 8, 1e4, scaling).depends_on_length is expected
    assert RotaryEmbedding(2, 2, 1e4, LongRoPEScalingParams([1.0], [2.0], 8, 16)).depends_on_length


def test_spec_holds_what_the_program_needs() -> None:
    kind, facts = RotaryEmbedding(4, 4, 1e4).spec()
    assert kind == "fixed" and set(facts) == {"inv_freq", "attention_factor"}
    kind, facts = RotaryEmbedding(4, 4, 1e4, LongRoPEScalingParams([1, 1], [2, 2], 16, 64)).spec()
    assert kind == "longrope" and facts["original_max_position"] == 16
    kind, facts = RotaryEmbedding(4, 4, 1e4, DynamicRopeScalingParams(2.0, 16)).spec()
    assert (kind, facts["theta"], facts["factor"], facts["rot_dim"]) == ("dynamic", 1e4, 2.0, 4)


@pytest.mark.parametrize(
    "build",
    [
        lambda: RotaryEmbedding(8, 7, 1e4),
        lambda: RotaryEmbedding(8, 10, 1e4),
        lambda: RotaryEmbedding(8, 8, 0.0),
        lambda: RotaryEmbedding(8, 8, 1e4, LinearRopeScalingParams(0.0)),
        lambda: RotaryEmbedding(8, 8, 1e4, FactorRopeScalingParams([1.0])),
        lambda: RotaryEmbedding(4, 4, 1e4, FactorRopeScalingParams([1.0, -1.0])),
        lambda: RotaryEmbedding(2, 2, 1e4, DynamicRopeScalingParams(2.0, 16)),
    ],
)
def test_what_makes_no_sense_is_refused(build: object) -> None:
    with pytest.raises(ValueError):
        build()  # type: ignore[operator]
