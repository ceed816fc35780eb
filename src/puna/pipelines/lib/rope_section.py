"""The ways in which configurations write down rotary embedding, brought into one.

Older ones have `rope_theta` beside `rope_scaling` with a `type`; later the key is `rope_type`; the newest put all of
it under `rope_parameters`, sometimes once per kind of layer. What comes out is `rope_theta`, `rope_scaling` (null, or
an object with a `rope_type` that is not `default`) and `partial_rotary_factor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from puna.errors import UnsupportedModelError
from puna.pipelines.lib.family_defaults import FamilyDefaults

__all__ = ["RopeSection", "read_rope_section", "split_rope"]

_SECTIONS: Final = ("rope_scaling", "rope_parameters")
_PARAMETERS: Final = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "longrope": frozenset({
        "factor",
        "short_factor",
        "long_factor",
        "attention_factor",
        "original_max_position_embeddings",
    }),
    "yarn": frozenset({
        "factor",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "original_max_position_embeddings",
    }),
    "factors": frozenset({"factors"}),
}
# Keys of every kind; `finetuned` tells how a model was made, not how it is computed.
_OTHERS: Final = frozenset({"rope_theta", "partial_rotary_factor", "rope_type", "type", "finetuned"})
_OLD_KINDS: Final = {"su": "longrope"}
_FACTOR_LISTS: Final = frozenset({"short_factor", "long_factor", "factors"})
_ZERO_IS_UNSET: Final = frozenset({"beta_fast", "beta_slow", "mscale", "mscale_all_dim"})
_MAX_PARAMETER: Final = float(1 << 31)
_MAX_LENGTH: Final = (1 << 31) - 1


@dataclass(frozen=True)
class RopeSection:
    """The normalized keys.

    Attributes:
        theta: Base of the frequencies; None where the configuration does not state it.
        scaling: An object with `rope_type` and that kind's parameters, or None.
        partial_rotary_factor: Share of a head that is rotated.
    """

    theta: Any
    scaling: dict[str, Any] | None
    partial_rotary_factor: Any


def read_rope_section(
    values: Mapping[str, Any], family: FamilyDefaults, file: str | None, *, allows_partial: bool = False
) -> RopeSection:
    """The rotary settings of a configuration.

    Args:
        values: Its keys.
        family: Defaults of its `model_type`.
        file: Where it comes from.
        allows_partial: Whether a head may be rotated in part even where the family's reference has no such key.

    Raises:
        UnsupportedModelError: a kind that is not known or not of this family, settings that differ between layers, a
            parameter that the kind does not have, or a value out of range.
    """
    section = dict(_the_section(values, file))
    theta = section.get("rope_theta", values.get("rope_theta"))
    share = _stated_once(section, values, "partial_rotary_factor", file)
    if share is None:
        share = 1.0 if allows_partial else family.partial_rotary_factor
    if share != 1 and not (family.has_partial_rotary or allows_partial):
        _refuse("partial_rotary_factor", share, file, f"1 for {family.architecture}")
    kind = _kind(section, family, file)
    known = _PARAMETERS[kind] if kind != "default" else frozenset().union(*_PARAMETERS.values())
    unknown = sorted(set(section) - _OTHERS - known)
    if unknown:
        _refuse(f"rope_scaling.{unknown[0]}", section[unknown[0]], file, f"keys of {kind}")
    if kind == "default":
        return RopeSection(theta, None, share)
    scaling = {"rope_type": kind, **{key: section[key] for key in _PARAMETERS[kind] if key in section}}
    _check_ranges(scaling, file)
    return RopeSection(theta, scaling, share)


def split_rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """For families whose layers with a window rotate in their own way: the newest spelling in the older one.

    Args:
        values: The keys of a configuration.

    Returns:
        `rope_parameters` of the other layers and `rope_local_base_freq`; nothing where `rope_parameters` does not state
        the two apart, or stretches the context for layers with a window too, which is then refused as any setting is
        that differs between layers.
    """
    section = values.get("rope_parameters")
    kinds = ("full_attention", "sliding_attention")
    if not isinstance(section, Mapping) or not all(isinstance(section.get(kind), Mapping) for kind in kinds):
        return {}
    full, local = (dict(section[kind]) for kind in kinds)
    if local.pop("rope_type", "default") != "default" or local.keys() != {"rope_theta"}:
        return {}
    return {"rope_parameters": full, "rope_local_base_freq": local["rope_theta"]}


def _refuse(key: str, value: Any, file: str | None, supported: str) -> NoReturn:
    raise UnsupportedModelError(key, value, file=file, supported=supported)


def _the_section(values: Mapping[str, Any], file: str | None) -> Mapping[str, Any]:
    found: dict[str, Mapping[str, Any]] = {}
    for key in _SECTIONS:
        section = values.get(key)
        if section is None or section == {}:
            continue
        if not isinstance(section, Mapping):
            _refuse(key, section, file, "an object")
        found[key] = _one_for_all_layers(key, section, file)
    if len(found) == 2 and found["rope_scaling"] != found["rope_parameters"]:
        _refuse("rope_parameters", dict(found["rope_parameters"]), file, "the same as rope_scaling, or one of the two")
    return next(iter(found.values()), {})


def _one_for_all_layers(key: str, section: Mapping[str, Any], file: str | None) -> Mapping[str, Any]:
    """Settings that are stated once per kind of layer are one setting where all of them are equal."""
    nested = [value for value in section.values() if isinstance(value, Mapping)]
    if not nested:
        return section
    if len(nested) < len(section) or any(value != nested[0] for value in nested):
        _refuse(key, dict(section), file, "one setting for all layers")
    return nested[0]


def _stated_once(section: Mapping[str, Any], values: Mapping[str, Any], key: str, file: str | None) -> Any:
    inner, outer = section.get(key), values.get(key)
    if inner is not None and outer is not None and inner != outer:
        _refuse(key, outer, file, f"{inner!r}, as the rotary section says")
    return outer if inner is None else inner


def _kind(section: Mapping[str, Any], family: FamilyDefaults, file: str | None) -> str:
    kind = section.get("rope_type", section.get("type"))
    if kind is None:
        if set(section) <= _OTHERS:
            return "default"
        _refuse("rope_scaling", dict(section), file, f"a type or rope_type of {', '.join(_PARAMETERS)}")
    if isinstance(kind, str):
        kind = family.old_rope_kinds.get(kind, _OLD_KINDS.get(kind, kind))
    kinds = [name for name in _PARAMETERS if family.rope_kinds is None or name in family.rope_kinds]
    if kind not in kinds:
        _refuse("rope_type", kind, file, ", ".join(kinds))
    return str(kind)


def _check_ranges(scaling: Mapping[str, Any], file: str | None) -> None:
    for key, value in scaling.items():
        name = f"rope_scaling.{key}"
        if key == "rope_type" or value is None:
            continue
        if key == "truncate":
            if not isinstance(value, bool):
                _refuse(name, value, file, "true, false")
        elif key in _FACTOR_LISTS:
            if not isinstance(value, list) or not all(map(_is_positive, value)):
                _refuse(name, value, file, "a list of positive numbers")
        elif key == "original_max_position_embeddings":
            if not _is_positive(value) or not 2 <= value <= _MAX_LENGTH or value != int(value):
                _refuse(name, value, file, f"2 to {_MAX_LENGTH}")
        elif not (_is_positive(value) or (key in _ZERO_IS_UNSET and value == 0)):
            _refuse(name, value, file, "positive numbers")
    low, high = scaling.get("low_freq_factor"), scaling.get("high_freq_factor")
    if low is not None and high is not None and low > high:
        _refuse("rope_scaling.low_freq_factor", low, file, f"at most high_freq_factor = {high}")


def _is_positive(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 < value <= _MAX_PARAMETER
