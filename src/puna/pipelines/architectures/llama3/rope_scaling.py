"""How a checkpoint's configuration stretches the context: the three spellings, read into one record.

Configurations say it as `rope_scaling` with `type` (older), as `rope_scaling` with `rope_type`, or as
`rope_parameters`, which holds the base `rope_theta` too. A kind that is not known is refused: a model run without its
scaling reads like nonsense only far into a text. Where a length is stated twice, the order is that of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from puna.errors import UnsupportedModelError
from puna.nn.rotary_embedding import (
    DynamicRopeScalingParams,
    FactorRopeScalingParams,
    LinearRopeScalingParams,
    Llama3RopeScalingParams,
    LongRoPEScalingParams,
    RopeScalingParams,
    YarnRopeScalingParams,
)
from puna.pipelines.lib.config_values import (
    config_source,
    read_count,
    read_flag,
    read_number,
    read_numbers,
    read_value,
)

__all__ = ["RopeSettings", "read_rope_settings"]

_KINDS: Final = ("default", "llama3", "longrope", "linear", "dynamic", "yarn", "factors")
_OLD_NAMES: Final = {"su": "longrope"}
_YARN_BETA_FAST: Final = 32.0
_YARN_BETA_SLOW: Final = 1.0


@dataclass(frozen=True)
class RopeSettings:
    """What a configuration says about rotary embedding.

    Attributes:
        theta: Base of the frequencies.
        scaling: How the context was stretched, or None.
        partial_rotary_factor: Share of a head that is rotated, above 0, at most 1.
    """

    theta: float
    scaling: RopeScalingParams | None
    partial_rotary_factor: float = 1.0


def read_rope_settings(huggingface_config: Any) -> RopeSettings:
    """The settings that a configuration states.

    Raises:
        UnsupportedModelError: a kind that is not known, settings per layer type, or a value that is missing or of the
            wrong type (also a `ValueError`).
    """
    section = _section(huggingface_config)
    theta = read_number(section, "rope_theta", None, file=config_source(huggingface_config))
    if theta is None:
        theta = read_number(huggingface_config, "rope_theta")
    share = read_number(section, "partial_rotary_factor", None)
    if share is None:
        share = read_number(huggingface_config, "partial_rotary_factor", 1.0)
    if not 0 < share <= 1:
        raise UnsupportedModelError(
            "partial_rotary_factor", share, file=config_source(huggingface_config), supported="above 0, at most 1"
        )
    return RopeSettings(theta, _scaling(huggingface_config, section), share)


def _section(config: Any) -> Mapping[str, Any]:
    for key in ("rope_parameters", "rope_scaling"):
        section = read_value(config, key)
        if not section and section != {}:
            continue
        if not isinstance(section, Mapping):
            raise UnsupportedModelError(key, section, file=config_source(config), supported="an object")
        if any(isinstance(value, Mapping) for value in section.values()):
            raise UnsupportedModelError(
                key, dict(section), file=config_source(config), supported="one setting for all layers"
            )
        if section:
            return section
    return {}


def _kind(config: Any, section: Mapping[str, Any]) -> str:
    kind = section.get("rope_type", section.get("type"))
    if kind is None:
        if set(section) <= {"rope_theta", "partial_rotary_factor"}:
            return "default"
        raise UnsupportedModelError(
            "rope_scaling",
            dict(section),
            file=config_source(config),
            supported=f"a type or rope_type of {', '.join(_KINDS)}",
        )
    kind = _OLD_NAMES.get(kind, kind)
    if kind not in _KINDS:
        raise UnsupportedModelError("rope_type", kind, file=config_source(config), supported=", ".join(_KINDS))
    return str(kind)


def _scaling(config: Any, section: Mapping[str, Any]) -> RopeScalingParams | None:
    file = config_source(config)
    match _kind(config, section):
        case "llama3":
            return Llama3RopeScalingParams(
                factor=read_number(section, "factor", file=file),
                low_freq_factor=read_number(section, "low_freq_factor", file=file),
                high_freq_factor=read_number(section, "high_freq_factor", file=file),
                orig_max_position=_original_length(config, section),
            )
        case "longrope":
            return LongRoPEScalingParams(
                short_factor=read_numbers(section, "short_factor", file=file),
                long_factor=read_numbers(section, "long_factor", file=file),
                original_max_position=_original_length(config, section),
                max_position_embeddings=read_count(config, "max_position_embeddings"),
                factor=read_number(section, "factor", None, file=file),
                attention_factor=read_number(section, "attention_factor", None, file=file),
            )
        case "linear":
            return LinearRopeScalingParams(read_number(section, "factor", file=file))
        case "dynamic":
            return DynamicRopeScalingParams(
                factor=read_number(section, "factor", file=file),
                original_max_position=read_count(config, "max_position_embeddings"),
            )
        case "yarn":
            return _yarn(config, section, file)
        case "factors":
            return FactorRopeScalingParams(read_numbers(section, "factors", file=file))
        case _:
            return None


def _yarn(config: Any, section: Mapping[str, Any], file: str | None) -> YarnRopeScalingParams:
    original = _original_length(config, section)
    factor = read_number(section, "factor", None, file=file)
    if factor is None:
        factor = read_count(config, "max_position_embeddings") / original
    return YarnRopeScalingParams(
        factor=factor,
        # zero counts as unset here, as it does in transformers
        beta_fast=read_number(section, "beta_fast", 0.0, file=file) or _YARN_BETA_FAST,
        beta_slow=read_number(section, "beta_slow", 0.0, file=file) or _YARN_BETA_SLOW,
        original_max_position=original,
        attention_factor=read_number(section, "attention_factor", None, file=file),
        mscale=read_number(section, "mscale", None, file=file),
        mscale_all_dim=read_number(section, "mscale_all_dim", None, file=file),
        truncate=read_flag(section, "truncate", True, file=file),
    )


def _original_length(config: Any, section: Mapping[str, Any]) -> int:
    """Context length before stretching: the config's own key, else the section's, else what is allowed now."""
    length = read_count(config, "original_max_position_embeddings", None)
    if length is None:
        length = read_count(section, "original_max_position_embeddings", None, file=config_source(config))
    return read_count(config, "max_position_embeddings") if length is None else length
