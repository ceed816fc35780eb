"""Puna runs Llama-shaped language models on CPUs.

`from puna import LLM, SamplingParams` is where to begin; docs/python.md goes on from there. Nothing is imported before
it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from puna.entrypoints.async_llm import AsyncLLM as AsyncLLM
    from puna.entrypoints.llm import LLM as LLM
    from puna.entrypoints.outputs import BeamSearchOutput as BeamSearchOutput
    from puna.entrypoints.outputs import ChoiceScore as ChoiceScore
    from puna.entrypoints.outputs import CompletionOutput as CompletionOutput
    from puna.entrypoints.outputs import Logprob as Logprob
    from puna.entrypoints.outputs import RequestOutput as RequestOutput
    from puna.errors import PunaError as PunaError
    from puna.pipelines.beam_search_params import BeamSearchParams as BeamSearchParams
    from puna.pipelines.sampling_params import RepetitionDetection as RepetitionDetection
    from puna.pipelines.sampling_params import SamplingParams as SamplingParams
    from puna.structured_output.params import StructuredOutputsParams as StructuredOutputsParams

__version__ = "0.1.0"

_EXPORTS: Final = {
    "AsyncLLM": "puna.entrypoints.async_llm",
    "LLM": "puna.entrypoints.llm",
    "BeamSearchOutput": "puna.entrypoints.outputs",
    "ChoiceScore": "puna.entrypoints.outputs",
    "CompletionOutput": "puna.entrypoints.outputs",
    "Logprob": "puna.entrypoints.outputs",
    "RequestOutput": "puna.entrypoints.outputs",
    "PunaError": "puna.errors",
    "BeamSearchParams": "puna.pipelines.beam_search_params",
    "RepetitionDetection": "puna.pipelines.sampling_params",
    "SamplingParams": "puna.pipelines.sampling_params",
    "StructuredOutputsParams": "puna.structured_output.params",
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'puna' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
