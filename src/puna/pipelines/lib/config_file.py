"""`PipelineConfig` from a file: the same sections and names as in Python."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from puna.driver import DeviceSpec
from puna.dtype import DType
from puna.errors import InvalidRequestError, ModelNotFoundError
from puna.nn.kv_cache import KVConnectorConfig
from puna.pipelines.lib.kv_cache_config import KVCacheConfig
from puna.pipelines.lib.lora_config import LoRAConfig
from puna.pipelines.lib.max_model_config import MAXModelConfig
from puna.pipelines.lib.pipeline_config import PipelineConfig, ProfilingConfig
from puna.pipelines.lib.runtime_config import PipelineRuntimeConfig
from puna.pipelines.lib.sampling_config import SamplingConfig
from puna.pipelines.lib.speculative_config import SpeculativeConfig

__all__ = ["load_pipeline_config", "pipeline_config_from_mapping"]

_MAX_BYTES: Final = 1 << 20
# Section (or a field that is a record) -> its class, wherever it stands.
_RECORDS: Final[Mapping[str, type[Any]]] = {
    "model": MAXModelConfig,
    "draft_model": MAXModelConfig,
    "kv_cache": KVCacheConfig,
    "kv_connector_config": KVConnectorConfig,
    "sampling": SamplingConfig,
    "profiling": ProfilingConfig,
    "lora": LoRAConfig,
    "speculative": SpeculativeConfig,
    "runtime": PipelineRuntimeConfig,
}
_DTYPES: Final = ("in_dtype", "out_dtype")


def load_pipeline_config(path: str | Path) -> PipelineConfig:
    """The configuration in a JSON file: an object with the sections `model`, `runtime`, `sampling`, `lora`, …

    Raises:
        ModelNotFoundError: there is no such file.
        InvalidRequestError: it is no JSON object, has a section or an option that does not exist, or a value of the
            wrong kind; otherwise as `PipelineConfig`.
    """
    file = Path(path)
    if not file.is_file():
        raise ModelNotFoundError(str(file), "there is no such configuration file")
    raw = file.read_bytes()
    if len(raw) > _MAX_BYTES:
        raise InvalidRequestError(f"{file} has {len(raw)} bytes, at most {_MAX_BYTES} are read", param="config_file")
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{file} is not JSON: {error}", param="config_file") from error
    return pipeline_config_from_mapping(values)


def pipeline_config_from_mapping(values: Any) -> PipelineConfig:
    """The configuration that nested mappings describe. Raises as `load_pipeline_config`."""
    config: PipelineConfig = _record(PipelineConfig, values, "config_file")
    return config


def _record(kind: type[Any], values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise InvalidRequestError(f"an object is expected, got {values!r}", param=where)
    known = {f.name for f in fields(kind) if f.init}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InvalidRequestError(f"{unknown[0]!r} is unknown; there is: {', '.join(sorted(known))}", param=where)
    arguments = {name: _value(name, value) for name, value in values.items()}
    try:
        return kind(**arguments)
    except TypeError as error:  # a required option is missing, or a value has another type than its check expects
        raise InvalidRequestError(str(error), param=where) from error


def _value(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name in _RECORDS:
        return _record(_RECORDS[name], value, name)
    if name in _DTYPES:
        return _dtype(name, value)
    if name == "device_specs":
        return [_record(DeviceSpec, spec, name) for spec in value]
    return value


def _dtype(name: str, value: Any) -> DType:
    try:
        return DType(value)
    except ValueError as error:
        raise InvalidRequestError(f"{value!r} is no element type", param=name) from error
