"""`PipelineConfig` from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from puna.dtype import DType
from puna.errors import InvalidRequestError, ModelNotFoundError
from puna.pipelines.lib import SupportedEncoding
from puna.pipelines.lib.config_file import load_pipeline_config

DEFERRED = {"defer_resolve": True}


def write(directory: Path, values: Any) -> Path:
    path = directory / "config.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def test_every_section_is_read(tmp_path: Path) -> None:
    config = load_pipeline_config(
        write(
            tmp_path,
            {
                "model": {
                    "model_path": "a/b",
                    "max_length": 100,
                    "quantization_encoding": "q4_k",
                    "weight_path": ["x.gguf"],
                    "device_specs": [{"id": 1, "device_type": "cpu"}],
                    "kv_cache": {"kv_cache_page_size": 16, "kv_cache_format": "float32"},
                },
                "runtime": {"max_batch_size": 4, **DEFERRED},
                "sampling": {"in_dtype": "float32"},
                "lora": {"max_lora_rank": 8},
                "speculative": {"speculative_method": "mtp"},
            },
        )
    )
    assert (config.model.model_path, config.model.max_length) == ("a/b", 100)
    assert config.model.quantization_encoding is SupportedEncoding.q4_k
    assert config.model.weight_path == [Path("x.gguf")]
    assert config.model.device_specs[0].id == 1
    assert (config.kv_cache.kv_cache_page_size, config.kv_cache.cache_dtype) == (16, DType.float32)
    assert (config.runtime.max_batch_size, config.sampling.in_dtype) == (4, DType.float32)
    assert config.lora is None
    assert config.speculative is not None
    assert config.speculative.speculative_method == "mtp"


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ("[1]", "config_file"),
        ("{", "config_file"),
        ({"modell": {}}, "config_file"),
        ({"runtime": DEFERRED}, "config_file"),
        ({"model": {"max_lenght": 1}}, "model"),
        ({"model": {"max_length": "ten"}}, "model"),
        ({"model": {"kv_cache": 3}}, "kv_cache"),
        ({"model": {"max_length": -1}}, "max_length"),
        ({"model": {}, "sampling": {"in_dtype": "float9"}}, "in_dtype"),
        ({"model": {}, "runtime": {"max_batch_size": 0}}, "max_batch_size"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(tmp_path: Path, values: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        load_pipeline_config(write(tmp_path, values))
    assert error.value.param == param


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"gone\.json"):
        load_pipeline_config(tmp_path / "gone.json")
