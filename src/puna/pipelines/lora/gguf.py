"""llama.cpp's adapters: GGUF files with `general.type = adapter`."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

from puna.errors import UnsupportedModelError, WeightsError
from puna.graph.weights import GGUFWeights, WeightData, WeightsFormat
from puna.pipelines.lora.module import AdapterModule

__all__ = ["read_gguf_adapter"]

_TENSOR: Final = re.compile(r"(.+)\.weight\.lora_([ab])")
_EMBEDDING: Final = "token_embd"


def read_gguf_adapter(path: Path, architectures: Collection[str]) -> list[AdapterModule]:
    """The modules of an adapter.

    Args:
        path: The file.
        architectures: What files for the model may call it.

    Raises:
        UnsupportedModelError: it is no adapter, or one of another kind or for another architecture.
        WeightsError: it is damaged.
    """
    weights = GGUFWeights(path)
    metadata = weights.metadata
    for key, expected in (("general.type", "adapter"), ("adapter.type", "lora")):
        if metadata.get(key) != expected:
            raise UnsupportedModelError(key, metadata.get(key), file=path, supported=expected)
    architecture = metadata.get("general.architecture")
    if architecture not in architectures:
        supported = ", ".join(architectures) or "none, this family has no GGUF files"
        raise UnsupportedModelError("general.architecture", architecture, file=path, supported=supported)
    if "adapter.alora.invocation_tokens" in metadata:
        supported = "adapters that act on every token"
        raise UnsupportedModelError("adapter.alora.invocation_tokens", "set", file=path, supported=supported)
    alpha = metadata.get("adapter.lora.alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UnsupportedModelError("adapter.lora.alpha", alpha, file=path, supported="a number")
    found: dict[str, dict[str, WeightData]] = {}
    for name, tensor in weights.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise UnsupportedModelError("tensor", name, file=path, supported="MODULE.weight.lora_a and .lora_b")
        found.setdefault(match[1], {})[match[2]] = _plain(tensor.data())
    if not found:
        raise WeightsError("has no tensors", file=path)
    return [_module(name, parts, float(alpha), path) for name, parts in found.items()]


def _module(name: str, parts: dict[str, WeightData], alpha: float, path: Path) -> AdapterModule:
    if set(parts) != {"a", "b"}:
        raise WeightsError(f"{name} needs lora_a and lora_b, it has only {', '.join(parts)}", file=path)
    a, b = parts["a"], parts["b"]
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise WeightsError(f"{name} has A {list(a.shape)} and B {list(b.shape)}, two axes each are needed", file=path)
    is_embedding = name == _EMBEDDING
    if is_embedding:  # stored by token
        a = WeightData.from_numpy(a.data.T, a.name)
    if a.shape[0] != b.shape[1]:
        raise WeightsError(f"{name} has A {list(a.shape)} and B {list(b.shape)}: their ranks differ", file=path)
    scale = alpha / a.shape[0] if alpha else 1.0  # as llama.cpp reads an alpha of 0
    return AdapterModule(name, WeightsFormat.gguf, a, b, scale, is_embedding=is_embedding)


def _plain(weight: WeightData) -> WeightData:
    """Blocks as the float32 numbers that they stand for."""
    if weight.quantization_encoding is None:
        return weight
    return WeightData.from_numpy(weight.to_float32(), weight.name)
