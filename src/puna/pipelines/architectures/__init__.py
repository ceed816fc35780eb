"""Model families, one folder each."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from puna.pipelines.lib import PIPELINE_REGISTRY

__all__ = ["register_all_models"]

_FAMILIES: Final = (
    "llama3",
    "mistral",
    "qwen2",
    "qwen3",
    "granite",
    "phi3",
    "olmo",
    "olmo2",
    "smollm3",
    "cohere",
    "glm4",
    "stablelm",
    "helium",
    "exaone4",
    "exaone",
    "internlm",
    "minicpm",
    "baichuan",
    "orion",
    "gemma",
    "ernie4_5",
    "seed_oss",
)
"""Folders of families; the `arch` module of each lists its `ARCHITECTURES`."""


def register_all_models() -> None:
    """Make every family known to the registry. Calling it again changes nothing."""
    for family in _FAMILIES:
        for architecture in import_module(f"{__name__}.{family}.arch").ARCHITECTURES:
            PIPELINE_REGISTRY.register(architecture)
