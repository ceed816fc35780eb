"""Reading a `quantization_config` of compressed-tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from puna.dtype import DType
from puna.errors import UnsupportedModelError
from puna.graph.weights.quantized import FloatScheme, IntegerScheme, LayerScheme
from puna.nn.quant_config import InputScaleSpec, QuantFormat, ScaleGranularity, ScaleOrigin, WeightScaleSpec
from puna.pipelines.lib.config_values import read_flag
from puna.pipelines.lib.quantization.module_names import ModuleNames
from puna.pipelines.lib.quantization.plan import FloatScales, LayerGroup, QuantizationPlan

__all__ = ["read_compressed_tensors"]

_KEY: Final = "quantization_config"
_FORMATS: Final = (
    *("dense", "naive-quantized", "int-quantized", "float-quantized", "pack-quantized", "mixed-precision"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"),
)
_STRATEGIES: Final = ("tensor", "channel", "group", "block", "tensor_group")
_EMBEDDING: Final = "re:.*(?:embed_tokens|wte|tok_embeddings)$"
_GRANULARITIES: Final = {
    "tensor": ScaleGranularity.TENSOR,
    "channel": ScaleGranularity.ROWWISE,
    "token": ScaleGranularity.COLWISE,
}


@dataclass(frozen=True)
class _Arguments:
    """The `weights` or `input_activations` of a config group."""

    values: Mapping[str, Any]
    key: str
    file: str | None

    def refuse(self, name: str, supported: str) -> NoReturn:
        raise UnsupportedModelError(f"{self.key}.{name}", self.values.get(name), file=self.file, supported=supported)

    @property
    def strategy(self) -> str:
        """What shares a scale; it follows from the group size where it is not stated."""
        stated = self.values.get("strategy")
        if stated is not None:
            return str(stated)
        size = self.values.get("group_size")
        return "tensor" if size is None else "channel" if size == -1 else "group"

    def group_size(self) -> int:
        size = self.values.get("group_size")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            self.refuse("group_size", "a number from 1, with this strategy")
        return size

    def block(self) -> tuple[int, int]:
        stated = self.values.get("block_structure")
        if isinstance(stated, str):
            stated = [int(part) if part.isdecimal() and len(part) < 10 else 0 for part in stated.split("x")]
        block = tuple(stated) if isinstance(stated, (list, tuple)) else ()
        if len(block) != 2 or not all(type(size) is int and size >= 1 for size in block):
            self.refuse("block_structure", "two numbers from 1")
        return block


def read_compressed_tensors(values: Mapping[str, Any], file: str | None) -> QuantizationPlan:
    """The layers that a section of compressed-tensors describes.

    Raises:
        UnsupportedModelError: a format, a strategy, a number of bits or a transformation that is not run.
    """
    name = values.get("format", "dense")
    _require_format(name, f"{_KEY}.format", file)
    status = values.get("quantization_status", "compressed")
    if status != "compressed" and name != "dense":
        raise UnsupportedModelError(f"{_KEY}.quantization_status", status, file=file, supported="compressed")
    sparsity = values.get("sparsity_config")
    if sparsity and (not isinstance(sparsity, Mapping) or sparsity.get("format", "dense") != "dense"):
        raise UnsupportedModelError(f"{_KEY}.sparsity_config", sparsity, file=file, supported="format dense")
    if values.get("transform_config"):
        transform = values["transform_config"]
        raise UnsupportedModelError(f"{_KEY}.transform_config", transform, file=file, supported="null")
    stated = values.get("config_groups") or {}
    if not isinstance(stated, Mapping) or not all(isinstance(group, Mapping) for group in stated.values()):
        raise UnsupportedModelError(f"{_KEY}.config_groups", stated, file=file, supported="an object of objects")
    groups: list[LayerGroup] = []
    scales: FloatScales | None = None
    for key, group in stated.items():
        where = f"{_KEY}.config_groups.{key}"
        _require_format(group.get("format") or name, f"{where}.format", file)
        scheme, found = _read_group(group, group.get("format") or name, where, file)
        scales = scales or found
        groups += [LayerGroup(scheme, names) for names in _targets(group.get("targets"), f"{where}.targets", file)]
    ignored = ModuleNames(values.get("ignore") or [], f"{_KEY}.ignore", file)
    return QuantizationPlan("compressed-tensors", groups, ignored, scales=scales)


def _require_format(name: Any, key: str, file: str | None) -> None:
    if name not in _FORMATS:
        raise UnsupportedModelError(key, name, file=file, supported=", ".join(_FORMATS))


def _targets(stated: Any, key: str, file: str | None) -> list[ModuleNames | None]:
    """The layers that a group is for: the class `Linear` means all layers, `Embedding` the embedding, others names."""
    names = ModuleNames(["Linear"] if stated is None else stated, key, file).entries
    plain = [name for name in names if name not in ("Linear", "Embedding")]
    plain += [_EMBEDDING] if "Embedding" in names else []
    found: list[ModuleNames | None] = [ModuleNames(plain, key, file)] if plain else []
    return [*found, None] if "Linear" in names else found


def _read_group(
    group: Mapping[str, Any], format: str, where: str, file: str | None
) -> tuple[LayerScheme, FloatScales | None]:
    stated = group.get("weights")
    if not isinstance(stated, Mapping):
        raise UnsupportedModelError(f"{where}.weights", stated, file=file, supported="an object")
    weights = _Arguments(stated, f"{where}.weights", file)
    if weights.strategy not in _STRATEGIES:
        weights.refuse("strategy", ", ".join(_STRATEGIES))
    if stated.get("dynamic"):
        weights.refuse("dynamic", "false")
    bits, kind = stated.get("num_bits", 8), str(stated.get("type", "int")).lower()
    if kind == "int":
        if type(bits) is not int or bits not in (4, 8):
            weights.refuse("num_bits", "4, 8")
        if weights.strategy not in ("tensor", "channel", "group"):
            weights.refuse("strategy", "tensor, channel, group, with integers")
        sizes = {"tensor": 0, "channel": -1}
        size = sizes[weights.strategy] if weights.strategy in sizes else weights.group_size()
        symmetric = bool(read_flag(stated, "symmetric", True, file=file))
        scales = _scales(group, weights, QuantFormat.INT8_W8A8, where) if bits == 8 else None
        return IntegerScheme(bits, size, symmetric), scales
    if kind != "float" or bits not in (4, 8):
        weights.refuse("num_bits" if kind == "float" else "type", "4, 8" if kind == "float" else "int, float")
    return _read_float(group, weights, bits, format, where)


def _read_float(
    group: Mapping[str, Any], weights: _Arguments, bits: int, format: str, where: str
) -> tuple[LayerScheme, FloatScales | None]:
    grouped = weights.strategy in ("group", "tensor_group")
    is_mx = grouped and weights.group_size() == 32 and (bits == 4 or format == "mxfp8-quantized")
    if bits == 4:
        if not grouped or weights.group_size() not in (16, 32):
            weights.refuse("group_size", "16 (NVFP4), 32 (MXFP4)")
        if is_mx:
            scheme = FloatScheme("mxfp4", ("weight_packed",), ("weight_scale",), (1, 32), has_exponents=True)
            return scheme, _scales(group, weights, QuantFormat.MXFP4, where)
        factor = "weight_global_scale"
        names = ("weight_packed",), ("weight_scale",)
        scheme = FloatScheme("float4_e2m1fnx2", *names, (1, 16), factor=factor, divides=True)
        return scheme, _scales(group, weights, QuantFormat.NVFP4, where)
    name = "mxfp8" if is_mx else "float8_e4m3fn"
    tiles = {"tensor": (0, 0), "channel": (1, 0)}
    if weights.strategy in tiles:
        tile = tiles[weights.strategy]
    elif weights.strategy == "block":
        tile = weights.block()
    else:
        tile = (1, weights.group_size())
    scheme = FloatScheme(name, ("weight",), ("weight_scale",), tile, has_exponents=is_mx)
    return scheme, _scales(group, weights, QuantFormat.MXFP8 if is_mx else QuantFormat.COMPRESSED_TENSORS_FP8, where)


def _scales(group: Mapping[str, Any], weights: _Arguments, format: QuantFormat, where: str) -> FloatScales:
    """What `QuantConfig` says of a group's scales."""
    stated = group.get("input_activations")
    if stated is not None and not isinstance(stated, Mapping):
        key = f"{where}.input_activations"
        raise UnsupportedModelError(key, stated, file=weights.file, supported="an object, null")
    inputs = _Arguments(stated or {"dynamic": True, "strategy": "token"}, f"{where}.input_activations", weights.file)
    origin = ScaleOrigin.STATIC if inputs.values.get("dynamic") in (False, None, "local") else ScaleOrigin.DYNAMIC
    dtype = {QuantFormat.NVFP4: DType.float8_e4m3fn}.get(format, DType.float32)
    if format in (QuantFormat.MXFP4, QuantFormat.MXFP8):
        dtype = DType.float8_e8m0fnu
    return FloatScales(
        InputScaleSpec(
            granularity=_granularity(inputs),
            origin=origin,
            dtype=DType.float32,
            block_size=_block(inputs),
        ),
        WeightScaleSpec(granularity=_granularity(weights), dtype=dtype, block_size=_block(weights)),
        format,
    )


def _granularity(arguments: _Arguments) -> ScaleGranularity:
    return _GRANULARITIES.get(arguments.strategy, ScaleGranularity.BLOCK)


def _block(arguments: _Arguments) -> tuple[int, int] | None:
    if _granularity(arguments) is not ScaleGranularity.BLOCK:
        return None
    return arguments.block() if arguments.strategy == "block" else (1, arguments.group_size())
