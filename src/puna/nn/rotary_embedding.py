"""Rotary position embedding: the angle that each pair of a head's elements turns by, for every way of stretching
context.

A `RotaryEmbedding` is a description. It answers two questions with plain numbers, the inverse frequencies and the
factor on cosine and sine, and hands the same facts to the native program. Frequencies are computed in float64 and
rounded to float32 once; the angle of a pair is `float32(position) * inv_freq` in float32.

Two kinds choose their frequencies by the length of a request: longrope takes one of two factor lists, dynamic takes its
base. Both are functions of that one request, never of what else is in the batch.

Sources: Su et al. 2021 (rotary embedding); Peng et al. 2023 (YaRN); Ding et al. 2024 (LongRoPE); the Llama 3.1 release
(`llama3`). Where papers leave room, Hugging Face transformers decides: checkpoints were made for what it computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Float32Array: TypeAlias = npt.NDArray[np.float32]
_Float64Array: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Llama3RopeScalingParams:
    """Llama 3.1's scaling: long wavelengths are divided by `factor`, short ones kept, those between blended.

    Attributes:
        factor: How much the context was stretched.
        low_freq_factor: Wavelengths above `orig_max_position / low_freq_factor` are divided.
        high_freq_factor: Wavelengths below `orig_max_position / high_freq_factor` are kept.
        orig_max_position: Context length before stretching, in tokens.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    orig_max_position: int


@dataclass(frozen=True)
class LongRoPEScalingParams:
    """LongRoPE: each pair has a divisor of its own, from one list for short requests and from another for long ones.

    Attributes:
        short_factor: Divisors while a request's total length is at most `original_max_position`.
        long_factor: Divisors beyond it.
        original_max_position: Context length before stretching, in tokens.
        max_position_embeddings: Context length after stretching, in tokens.
        factor: The stretch that the attention factor is made from; None: the ratio of the two lengths.
        attention_factor: What cosine and sine are multiplied by; None: `sqrt(1 + ln(factor) / ln(original))`.
    """

    short_factor: list[float]
    long_factor: list[float]
    original_max_position: int
    max_position_embeddings: int
    factor: float | None = None
    attention_factor: float | None = None


@dataclass(frozen=True)
class LinearRopeScalingParams:
    """Position interpolation: every frequency is divided by `factor`."""

    factor: float


@dataclass(frozen=True)
class DynamicRopeScalingParams:
    """NTK-aware scaling: the base grows with the length of the request once that exceeds `original_max_position`.

    Attributes:
        factor: Stretch per original length.
        original_max_position: Length up to which nothing changes, in tokens (the config's `max_position_embeddings`).
    """

    factor: float
    original_max_position: int


@dataclass(frozen=True)
class YarnRopeScalingParams:
    """YaRN: slow pairs are interpolated, fast ones kept, with a linear ramp over the pairs between.

    Attributes:
        factor: How much the context was stretched.
        beta_fast: Pairs that turn at least this often within the original length are kept.
        beta_slow: Pairs that turn at most this often are divided by `factor`.
        original_max_position: Context length before stretching, in tokens.
        attention_factor: What cosine and sine are multiplied by; None: derived from `factor` and the two mscales.
        mscale: With `mscale_all_dim`: the attention factor is the ratio of `0.1 * m * ln(factor) + 1` for the two.
        mscale_all_dim: See `mscale`.
        truncate: Whether the ends of the ramp are rounded outwards to whole pairs.
    """

    factor: float
    beta_fast: float
    beta_slow: float
    original_max_position: int
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True)
class FactorRopeScalingParams:
    """One divisor per pair for every length, as GGUF's `rope_freqs.weight` stores it."""

    factors: list[float]


RopeScalingParams: TypeAlias = (
    Llama3RopeScalingParams
    | LongRoPEScalingParams
    | LinearRopeScalingParams
    | DynamicRopeScalingParams
    | YarnRopeScalingParams
    | FactorRopeScalingParams
)


@dataclass(frozen=True)
class RotaryEmbedding:
    """The rotary embedding of one model.

    Attributes:
        head_dim: Size of a head, in elements.
        rot_dim: How many leading elements of a head are rotated; even, at most `head_dim`. The rest passes unchanged.
        theta: Base of the frequencies: `inv_freq[j] = theta ** (-2j / rot_dim)`.
        scaling: How the context was stretched, or None.

    Raises:
        ValueError: The sizes do not fit each other, a factor is not positive, or a factor list is too short.
    """

    head_dim: int
    rot_dim: int
    theta: float
    scaling: RopeScalingParams | None = None

    def __post_init__(self) -> None:
        if not 0 < self.rot_dim <= self.head_dim or self.rot_dim % 2:
            raise ValueError(f"rot_dim must be even and within 2..head_dim ({self.head_dim}), got {self.rot_dim}")
        if not (math.isfinite(self.theta) and self.theta > 0):
            raise ValueError(f"theta must be positive, got {self.theta}")
        self._check_scaling()

    @property
    def depends_on_length(self) -> bool:
        """Whether a request's frequencies are a function of its length (longrope, dynamic)."""
        return isinstance(self.scaling, LongRoPEScalingParams | DynamicRopeScalingParams)

    def inv_freq(self, length: int) -> Float32Array:
        """Inverse frequencies for a request of `length` tokens, float32 `[rot_dim / 2]`, radians per token."""
        scaling = self.scaling
        if isinstance(scaling, LongRoPEScalingParams):
            return self._longrope_inv_freqs[self.regime(length)]
        if isinstance(scaling, DynamicRopeScalingParams):
            return self._frequencies(self._dynamic_theta(scaling, length)).astype(np.float32)
        return self._fixed_inv_freq

    def attention_factor(self, length: int) -> float:
        """What cosine and sine are multiplied by for a request of `length` tokens (1 for most kinds)."""
        scaling = self.scaling
        if isinstance(scaling, LongRoPEScalingParams):
            return _longrope_attention_factor(scaling)
        if isinstance(scaling, YarnRopeScalingParams):
            return _yarn_attention_factor(scaling)
        return 1.0

    def request_length(self, prompt_length: int, total_length: int) -> int:
        """The length that decides a request's frequencies: the prompt's for dynamic scaling, else all tokens so far."""
        return prompt_length if isinstance(self.scaling, DynamicRopeScalingParams) else total_length

    def regime(self, length: int) -> int:
        """A number that is equal for two lengths exactly if their frequencies are.

        Keys that were cached under one regime are of no use under another; so it is part of a cache block's identity.
        """
        scaling = self.scaling
        if isinstance(scaling, LongRoPEScalingParams):
            return int(length > scaling.original_max_position)
        if isinstance(scaling, DynamicRopeScalingParams):
            return max(length, scaling.original_max_position)
        return 0

    def spec(self) -> tuple[str, Mapping[str, object]]:
        """Kind and parameters as the native program takes them.

        Returns:
            `("fixed", {inv_freq, attention_factor})`,
            `("longrope", {short_inv_freq, long_inv_freq, original_max_position, attention_factor})` or
            `("dynamic", {theta, factor, original_max_position, rot_dim, attention_factor})`; frequencies are float32
            `[rot_dim / 2]`.
        """
        scaling = self.scaling
        factor = self.attention_factor(0)
        if isinstance(scaling, LongRoPEScalingParams):
            short, long = self._longrope_inv_freqs
            return "longrope", {
                "short_inv_freq": short,
                "long_inv_freq": long,
                "original_max_position": scaling.original_max_position,
                "attention_factor": factor,
            }
        if isinstance(scaling, DynamicRopeScalingParams):
            return "dynamic", {
                "theta": float(self.theta),
                "factor": float(scaling.factor),
                "original_max_position": scaling.original_max_position,
                "rot_dim": self.rot_dim,
                "attention_factor": factor,
            }
        return "fixed", {"inv_freq": self._fixed_inv_freq, "attention_factor": factor}

    def _check_scaling(self) -> None:
        scaling = self.scaling
        for name in ("factor", "original_max_position", "orig_max_position", "attention_factor"):
            value = getattr(scaling, name, None)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} of {type(scaling).__name__} must be positive, got {value}")
        for name in ("short_factor", "long_factor", "factors"):
            factors = getattr(scaling, name, None)
            if factors is None:
                continue
            if len(factors) < self.rot_dim // 2:
                raise ValueError(f"{name} has {len(factors)} entries, {self.rot_dim // 2} are needed")
            if not all(math.isfinite(f) and f > 0 for f in factors[: self.rot_dim // 2]):
                raise ValueError(f"{name} must be positive throughout")
        if isinstance(scaling, DynamicRopeScalingParams) and self.rot_dim <= 2:
            raise ValueError(f"dynamic scaling needs rot_dim above 2, got {self.rot_dim}")

    def _frequencies(self, theta: float) -> _Float64Array:
        exponent = np.arange(0, self.rot_dim, 2, dtype=np.float64) / self.rot_dim
        return 1.0 / np.float64(theta) ** exponent

    def _dynamic_theta(self, scaling: DynamicRopeScalingParams, length: int) -> float:
        effective = max(length, scaling.original_max_position)
        stretch = scaling.factor * effective / scaling.original_max_position - (scaling.factor - 1)
        return float(self.theta * stretch ** (self.rot_dim / (self.rot_dim - 2)))

    @cached_property
    def _longrope_inv_freqs(self) -> tuple[Float32Array, Float32Array]:
        assert isinstance(self.scaling, LongRoPEScalingParams)
        base = self._frequencies(self.theta)
        short = base / np.asarray(self.scaling.short_factor[: base.size], dtype=np.float64)
        long = base / np.asarray(self.scaling.long_factor[: base.size], dtype=np.float64)
        return _read_only(short), _read_only(long)

    @cached_property
    def _fixed_inv_freq(self) -> Float32Array:
        scaling = self.scaling
        base = self._frequencies(self.theta)
        if isinstance(scaling, LinearRopeScalingParams):
            base = base / scaling.factor
        elif isinstance(scaling, FactorRopeScalingParams):
            base = base / np.asarray(scaling.factors[: base.size], dtype=np.float64)
        elif isinstance(scaling, Llama3RopeScalingParams):
            base = _llama3(base, scaling)
        elif isinstance(scaling, YarnRopeScalingParams):
            base = _yarn(base, scaling, self.rot_dim, self.theta)
        return _read_only(base)


@dataclass(frozen=True)
class Unrotated:
    """No rotation, for layers that tell positions apart by the causal mask alone: every angle is 0, and a product with
    its cosine, 1, and a sum with its sine, 0, change no number.

    Attributes:
        rot_dim: Elements of a head that the other layers rotate.
    """

    rot_dim: int

    def inv_freq(self, length: int) -> Float32Array:
        """Zeros, float32 `[rot_dim / 2]`, whatever the length."""
        return np.zeros(self.rot_dim // 2, np.float32)

    def attention_factor(self, length: int) -> float:
        """1."""
        return 1.0

    def spec(self) -> tuple[str, Mapping[str, object]]:
        """Kind and parameters as `RotaryEmbedding.spec`."""
        return "fixed", {"inv_freq": self.inv_freq(0), "attention_factor": 1.0}


def _read_only(frequencies: _Float64Array) -> Float32Array:
    rounded = frequencies.astype(np.float32)
    rounded.flags.writeable = False
    return rounded


def _llama3(inv_freq: _Float64Array, scaling: Llama3RopeScalingParams) -> _Float64Array:
    original, low, high = scaling.orig_max_position, scaling.low_freq_factor, scaling.high_freq_factor
    wavelength = 2 * math.pi / inv_freq
    divided = inv_freq / scaling.factor
    smooth = np.zeros_like(inv_freq) if low == high else (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * divided + smooth * inv_freq
    return np.where(wavelength < original / high, inv_freq, np.where(wavelength > original / low, divided, blended))


def _yarn(inv_freq: _Float64Array, scaling: YarnRopeScalingParams, rot_dim: int, theta: float) -> _Float64Array:
    def pair_that_turns(rotations: float) -> float:
        return rot_dim * math.log(scaling.original_max_position / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rot_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a division by zero
    ramp = np.clip((np.arange(rot_dim // 2, dtype=np.float64) - low) / (high - low), 0, 1)
    return inv_freq / scaling.factor * ramp + inv_freq * (1 - ramp)


def _yarn_attention_factor(scaling: YarnRopeScalingParams) -> float:
    def magnitude(mscale: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * mscale * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return float(scaling.attention_factor)
    if scaling.mscale and scaling.mscale_all_dim:
        return magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim)
    return magnitude(1.0)


def _longrope_attention_factor(scaling: LongRoPEScalingParams) -> float:
    if scaling.attention_factor is not None:
        return float(scaling.attention_factor)
    factor = scaling.factor
    if factor is None:
        factor = scaling.max_position_embeddings / scaling.original_max_position
    if factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(scaling.original_max_position))
