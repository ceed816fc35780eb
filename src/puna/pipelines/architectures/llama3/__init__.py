"""Llama 3 transformer architecture for text generation."""

from __future__ import annotations

from puna.pipelines.architectures.llama3.inputs import Llama3Inputs
from puna.pipelines.architectures.llama3.model import Llama3Model, LlamaModelBase
from puna.pipelines.architectures.llama3.model_config import Llama3Config

__all__ = ["Llama3Config", "Llama3Inputs", "Llama3Model", "LlamaModelBase"]
