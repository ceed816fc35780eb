"""Contracts and values that pipelines and architectures share."""

from __future__ import annotations

from puna.pipelines.lib.encodings import RUNNABLE_ENCODINGS, SupportedEncoding, infer_encoding_from_name
from puna.pipelines.lib.interfaces import (
    ArchConfig,
    ArchConfigWithKVCache,
    ModelInputs,
    ModelOutputs,
    PipelineModel,
    PipelineModelWithKVCache,
    require_huggingface_config,
    upper_bounded_default,
)
from puna.pipelines.lib.kv_cache_config import KVCacheConfig
from puna.pipelines.lib.log_probabilities import LogProbabilities, LogProbabilitiesMixin
from puna.pipelines.lib.lora_config import LoRAConfig
from puna.pipelines.lib.max_model_config import MAXModelConfig, parse_devices
from puna.pipelines.lib.pipeline_config import PipelineConfig, ProfilingConfig
from puna.pipelines.lib.registry import (
    PIPELINE_REGISTRY,
    PipelineRegistry,
    PipelineTask,
    RopeType,
    SupportedArchitecture,
)
from puna.pipelines.lib.runtime_config import PipelineRole, PipelineRuntimeConfig
from puna.pipelines.lib.sampling_config import SamplingConfig
from puna.pipelines.lib.speculative_config import SpeculativeConfig, SpeculativeMethod

__all__ = [
    "PIPELINE_REGISTRY",
    "RUNNABLE_ENCODINGS",
    "ArchConfig",
    "ArchConfigWithKVCache",
    "KVCacheConfig",
    "LoRAConfig",
    "LogProbabilities",
    "LogProbabilitiesMixin",
    "MAXModelConfig",
    "ModelInputs",
    "ModelOutputs",
    "PipelineConfig",
    "PipelineModel",
    "PipelineModelWithKVCache",
    "PipelineRegistry",
    "PipelineRole",
    "PipelineRuntimeConfig",
    "PipelineTask",
    "ProfilingConfig",
    "RopeType",
    "SamplingConfig",
    "SpeculativeConfig",
    "SpeculativeMethod",
    "SupportedArchitecture",
    "SupportedEncoding",
    "infer_encoding_from_name",
    "parse_devices",
    "require_huggingface_config",
    "upper_bounded_default",
]
