"""What a checkpoint states about sampling: its `generation_config.json`, or the keys of a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from puna.errors import WeightsError
from puna.pipelines.sampling_params import SamplingParamsInput

__all__ = ["GGUF_SAMPLING", "generation_defaults", "gguf_generation_defaults"]

# Key in the file -> the field of SamplingParamsInput.
_FLOATS: Final = {name: name for name in ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty")}
_INTEGERS: Final = {"top_k": "top_k", "max_new_tokens": "max_tokens", "no_repeat_ngram_size": "no_repeat_ngram_size"}
_MAX_BYTES: Final = 1 << 20
GGUF_SAMPLING: Final = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
"""Fields of SamplingParamsInput -> the keys that GGUF files have for them."""


def generation_defaults(path: Path) -> SamplingParamsInput:
    """The sampling values that a `generation_config.json` states explicitly.

    `do_sample: false` means greedy decoding (temperature 0, `top_k` 1), whatever else the file says;
    `eos_token_id`, a number or a list, becomes `stop_token_ids`.

    Raises:
        WeightsError: the file cannot be read, is not a JSON object, or a value in it has the wrong type.
    """
    values = _read_object(path)
    stated: dict[str, Any] = {}
    for key, name in (_FLOATS | _INTEGERS).items():
        value = values.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int if key in _INTEGERS else (int, float)):
            raise WeightsError(f"{key} = {value!r} is not a number of the expected kind", file=path)
        stated[name] = value
    do_sample = values.get("do_sample")
    if do_sample is not None and not isinstance(do_sample, bool):
        raise WeightsError(f"do_sample = {do_sample!r} is neither true nor false", file=path)
    if do_sample is False:
        stated |= {"temperature": 0.0, "top_k": 1}
    stop_ids = values.get("eos_token_id")
    if stop_ids is not None:
        ids = stop_ids if isinstance(stop_ids, list) else [stop_ids]
        if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
            raise WeightsError(f"eos_token_id = {stop_ids!r} is no token id and no list of them", file=path)
        stated["stop_token_ids"] = tuple(ids)
    return SamplingParamsInput(**stated)


def gguf_generation_defaults(metadata: Mapping[str, Any], file: str) -> SamplingParamsInput:
    """The sampling values that a GGUF file states.

    Raises:
        WeightsError: a value is no number of the expected kind.
    """
    stated: dict[str, Any] = {}
    for name, key in GGUF_SAMPLING.items():
        value = metadata.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int if name == "top_k" else (int, float)):
            raise WeightsError(f"{value!r} is not a number of the expected kind", file=file, tensor=key)
        # float32 as its shortest text, so that 0.6 is 0.6
        stated[name] = float(str(np.float32(value))) if isinstance(value, float) else value
    return SamplingParamsInput(**stated)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise WeightsError(f"cannot be read: {error.strerror}", file=path) from error
    if len(raw) > _MAX_BYTES:
        raise WeightsError(f"has more than {_MAX_BYTES} bytes", file=path)
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"is not JSON: {error}", file=path) from error
    if not isinstance(values, dict):
        raise WeightsError(f"is not a JSON object but {type(values).__name__}", file=path)
    return values
