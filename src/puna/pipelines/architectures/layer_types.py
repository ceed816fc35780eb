"""Which layers have a window, for families that say it layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from puna.errors import UnsupportedModelError
from puna.pipelines.lib.config_values import config_source, read_value

__all__ = ["windowed_layers"]

_LAYER_TYPES: Final = ("full_attention", "sliding_attention")


def windowed_layers(config: Any, num_layers: int, *, period: int) -> frozenset[int]:
    """The layers of `layer_types` that are `sliding_attention`; without that key all but every `period`-th.

    Raises:
        UnsupportedModelError: `layer_types` has another length, or an entry that is neither `full_attention` nor
            `sliding_attention`.
    """
    layer_types = read_value(config, "layer_types")
    if layer_types is None:
        return frozenset(layer for layer in range(num_layers) if (layer + 1) % period)
    is_list = isinstance(layer_types, Sequence) and len(layer_types) == num_layers
    if not is_list or any(kind not in _LAYER_TYPES for kind in layer_types):
        supported = f"{num_layers} entries of {', '.join(_LAYER_TYPES)}"
        raise UnsupportedModelError("layer_types", layer_types, file=config_source(config), supported=supported)
    return frozenset(layer for layer, kind in enumerate(layer_types) if kind == "sliding_attention")
