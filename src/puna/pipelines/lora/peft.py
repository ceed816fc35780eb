"""PEFT's adapters: `adapter_config.json` and `adapter_model.safetensors` in a directory."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from puna.errors import UnsupportedModelError, WeightsError
from puna.graph.weights import SafetensorWeights, WeightData, WeightsFormat
from puna.graph.weights.load import inside
from puna.pipelines.lora.module import AdapterModule

__all__ = ["CONFIG_NAME", "read_peft"]

CONFIG_NAME: Final = "adapter_config.json"
WEIGHTS_NAME: Final = "adapter_model.safetensors"
_MAX_CONFIG_BYTES: Final = 1 << 20
_MAX_PATTERN: Final = 4096
_PREFIX: Final = "base_model.model."
_TENSOR: Final = re.compile(r"(.+)\.(?:lora_([AB])\.weight|lora_embedding_([AB]))")

# Options that say how an adapter was trained, or nothing that matters here.
_NEUTRAL: Final = frozenset({
    *("arrow_config", "auto_mapping", "base_model_name_or_path", "corda_config"),
    *("eva_config", "inference_mode", "layers_pattern", "loftq_config", "lora_dropout"),
    *("lora_ga_config", "megatron_config", "megatron_core", "peft_version", "qalora_group_size", "revision"),
    *("runtime_config", "task_type"),
})
_READ: Final = frozenset({
    *("alpha_pattern", "exclude_modules", "init_lora_weights", "layers_to_transform", "lora_alpha", "peft_type", "r"),
    *("rank_pattern", "target_modules", "use_rslora", "bias"),
})
# Options that change what is computed in a way that is not implemented, whatever they are set to but nothing.
_REFUSED: Final = {
    "modules_to_save": "adapters whose every weight is low-rank",
    "use_dora": "adapters without magnitudes (DoRA)",
    "lora_bias": "adapters without biases",
    "fan_in_fan_out": "weights stored as [outputs, inputs]",
    "layer_replication": "the model's own layers",
    "trainable_token_indices": "adapters whose every weight is low-rank",
    "target_parameters": "modules",
    "use_qalora": "adapters that read whole rows",
    "alora_invocation_tokens": "adapters that act on every token",
    "ensure_weight_tying": "adapters of the embedding and of the output matrix by themselves",
}
# Ways of beginning that change the base model's weights; what is trained then does not fit the model as it is.
_CHANGES_BASE: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")


def read_peft(directory: Path) -> list[AdapterModule]:
    """The modules of an adapter.

    Raises:
        UnsupportedModelError: it asks for something that is not computed; the message names the option.
        WeightsError: a file is missing, damaged, or does not say what the other one says.
    """
    config = _Config.read(inside(directory, CONFIG_NAME, directory))
    names = {path.name for path in directory.iterdir()}
    if WEIGHTS_NAME not in names:
        pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl")))
        reason = f"; {pickles[0]} is a pickle, which can run code and is never read" if pickles else ""
        raise WeightsError(f"has no {WEIGHTS_NAME}{reason}", file=directory)
    path = inside(directory, WEIGHTS_NAME, directory)
    found: dict[str, dict[str, WeightData]] = {}
    for name, tensor in SafetensorWeights(path).items():
        match = _TENSOR.fullmatch(name)
        if match is None or not name.startswith(_PREFIX):
            raise _unknown_tensor(name, path)
        module = match[1].removeprefix(_PREFIX)
        part = f"embedding {match[3]}" if match[3] else match[2]
        found.setdefault(module, {})[part] = tensor.data()
    if not found:
        raise WeightsError("has no tensors", file=path)
    modules = [_module(name, parts, config, path) for name, parts in found.items()]
    config.check_targets([module.name for module in modules])
    return modules


def _module(name: str, parts: Mapping[str, WeightData], config: _Config, path: Path) -> AdapterModule:
    is_embedding = any(part.startswith("embedding") for part in parts)
    expected = ("embedding A", "embedding B") if is_embedding else ("A", "B")
    if set(parts) != set(expected):
        raise WeightsError(f"{name} needs lora_A and lora_B, it has {', '.join(sorted(parts))}", file=path)
    a, b = (parts[part] for part in expected)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise WeightsError(f"{name} has A {list(a.shape)} and B {list(b.shape)}: their ranks differ", file=path)
    rank, scale = config.rank_and_scale(name)
    if a.shape[0] != rank:
        raise WeightsError(f"has rank {a.shape[0]}, {CONFIG_NAME} says {rank}", file=path, tensor=a.name)
    if not config.is_target(name):
        raise WeightsError(f"{name} is not among target_modules of {CONFIG_NAME}", file=path)
    return AdapterModule(name, WeightsFormat.safetensors, a, b, scale, is_embedding=is_embedding)


def _unknown_tensor(name: str, path: Path) -> Exception:
    if "lora_magnitude_vector" in name:
        return UnsupportedModelError("tensor", name, file=path, supported=_REFUSED["use_dora"])
    if name.endswith(".bias"):
        return UnsupportedModelError("tensor", name, file=path, supported=_REFUSED["lora_bias"])
    supported = f"names of the form {_PREFIX}MODULE.lora_A.weight (whole weights, of modules_to_save, are not)"
    return UnsupportedModelError("tensor", name, file=path, supported=supported)


@dataclass(frozen=True)
class _Config:
    """What `adapter_config.json` says."""

    path: Path
    values: Mapping[str, Any]
    patterns: Mapping[str, Callable[[str], bool]]

    @classmethod
    def read(cls, path: Path) -> _Config:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise WeightsError("is not a regular file", file=path)
        try:
            with path.open("rb") as file:
                raw = file.read(_MAX_CONFIG_BYTES + 1)
        except OSError as error:
            raise WeightsError(f"cannot be read: {error.strerror}", file=path) from error
        if len(raw) > _MAX_CONFIG_BYTES:
            raise WeightsError(f"is too large: at most {_MAX_CONFIG_BYTES} bytes are read", file=path)
        try:
            values = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise WeightsError(f"is not JSON: {error}", file=path) from error
        if not isinstance(values, dict):
            raise WeightsError("is no JSON object", file=path)
        config = cls(path, values, {})
        config._check()
        return config

    def is_target(self, module: str) -> bool:
        """Whether a module is one that the adapter says to update."""
        targets, layers = self.values.get("target_modules"), self.values.get("layers_to_transform")
        if _names(self.values.get("exclude_modules"), module, self._matches):
            return False
        if layers is not None and not isinstance(targets, str):
            number = next((int(part) for part in module.split(".") if part.isdecimal()), None)
            if number not in ([layers] if isinstance(layers, int) else layers):
                return False
        return targets == "all-linear" or _names(targets, module, self._matches)

    def check_targets(self, modules: list[str]) -> None:
        """Raise unless every name among the targets has a module."""
        targets = self.values.get("target_modules")
        for target in targets if isinstance(targets, list) else ():
            if not any(module == target or module.endswith(f".{target}") for module in modules):
                self._fail("target_modules", target, f"names with tensors in {WEIGHTS_NAME}")

    def rank_and_scale(self, module: str) -> tuple[int, float]:
        """Rank and factor of a module: its own where a pattern names it."""
        rank, alpha = self.values["r"], self.values["lora_alpha"]
        for key in ("rank_pattern", "alpha_pattern"):
            for pattern, value in (self.values.get(key) or {}).items():
                if self._matches(key, rf"(?:.*\.)?(?:{pattern})", module):
                    rank, alpha = (value, alpha) if key == "rank_pattern" else (rank, value)
                    break
        return rank, alpha / (math.sqrt(rank) if self.values.get("use_rslora") else rank)

    def _matches(self, key: str, pattern: str, text: str) -> bool:
        """Whether a pattern of the file matches a whole text, in time that is linear in its length."""
        from pydantic_core import SchemaError, SchemaValidator, core_schema

        if len(pattern) > _MAX_PATTERN:
            self._fail(key, f"{pattern[:40]}…", f"patterns of at most {_MAX_PATTERN} characters")
        schema = core_schema.str_schema(pattern=rf"^(?:{pattern})$", regex_engine="rust-regex")
        try:
            return SchemaValidator(schema).isinstance_python(text)
        except SchemaError:
            self._fail(key, pattern, "regular expressions without look-around and references")

    def _check(self) -> None:
        values = self.values
        if str(values.get("peft_type")).upper() != "LORA":
            self._fail("peft_type", values.get("peft_type"), "LORA")
        for key, supported in _REFUSED.items():
            if values.get(key):
                self._fail(key, values[key], supported)
        if values.get("bias", "none") not in ("none", None):
            self._fail("bias", values["bias"], "none")
        unknown = [key for key, value in values.items() if value and key not in _NEUTRAL | _READ | _REFUSED.keys()]
        if unknown:
            self._fail(unknown[0], values[unknown[0]], "options of PEFT's LoraConfig that are known here")
        start = values.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
            self._fail("init_lora_weights", start, "adapters to the base model's own weights (PEFT can convert them)")
        self._require("r", values.get("r"), is_rank=True)
        self._require("lora_alpha", values.get("lora_alpha"), is_rank=False)
        for key in ("rank_pattern", "alpha_pattern"):
            pattern = values.get(key) or {}
            if not isinstance(pattern, dict):
                self._fail(key, pattern, "an object")
            for value in pattern.values():
                self._require(key, value, is_rank=key == "rank_pattern")
        for key in ("target_modules", "exclude_modules"):
            value = values.get(key)
            is_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
            if not (isinstance(value, str) or is_list or (value is None and key == "exclude_modules")):
                self._fail(key, value, "a list of names, or a pattern")
        layers = values.get("layers_to_transform")
        numbers = layers if isinstance(layers, list) else [] if layers is None else [layers]
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
            self._fail("layers_to_transform", layers, "layer numbers")

    def _require(self, key: str, value: object, *, is_rank: bool) -> None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or (is_rank and (not isinstance(value, int) or not 1 <= value <= 1 << 16)):
            self._fail(key, value, "a rank from 1" if is_rank else "a number")

    def _fail(self, key: str, value: object, supported: str) -> NoReturn:
        raise UnsupportedModelError(key, value, file=self.path, supported=supported)


def _names(targets: Any, module: str, matches: Callable[[str, str, str], bool]) -> bool:
    """Whether a pattern, or a list of names or of their ends, names a module."""
    if isinstance(targets, str):
        return matches("target_modules", targets, module)
    return any(module == target or module.endswith(f".{target}") for target in targets or ())
