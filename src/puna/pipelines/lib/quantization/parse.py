"""Reading a configuration's `quantization_config`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from puna.dtype import DType
from puna.errors import UnsupportedModelError
from puna.graph.weights import Weights
from puna.graph.weights.quantized import (
    AwqScheme,
    FloatScheme,
    GptqScheme,
    LayerScheme,
    quantized_layers,
    read_quantized,
)
from puna.nn.quant_config import (
    InputScaleSpec,
    QuantFormat,
    QuantizationConfig,
    ScaleGranularity,
    ScaleOrigin,
    WeightScaleSpec,
)
from puna.pipelines.lib.config_values import config_source, read_count, read_flag, read_number, read_value
from puna.pipelines.lib.quantization.compressed_tensors import read_compressed_tensors
from puna.pipelines.lib.quantization.module_names import ModuleNames
from puna.pipelines.lib.quantization.plan import FloatScales, LayerGroup, QuantizationPlan

__all__ = ["read_quantization", "with_quantized_layers"]

_KEY: Final = "quantization_config"
_CHECKPOINT_FORMATS: Final = {"gptq": 1, "gptq_v2": 0}
_FP8_BLOCK: Final = (128, 128)
_DYNAMIC_TOKEN: Final = InputScaleSpec(
    granularity=ScaleGranularity.COLWISE, origin=ScaleOrigin.DYNAMIC, dtype=DType.float32
)


def read_quantization(config: Any) -> QuantizationPlan | None:
    """What a configuration says of quantized layers; None if it has no `quantization_config`.

    Args:
        config: A checkpoint's configuration, as a mapping or an object with attributes; None: there is none.

    Raises:
        UnsupportedModelError: the method, or one of its settings, is not run; the message names key, value and file.
    """
    section = read_value(config, _KEY)
    if section is None:
        return None
    file = config_source(config)
    if not isinstance(section, Mapping) and hasattr(section, "to_dict"):
        section = section.to_dict()
    if not isinstance(section, Mapping):
        raise UnsupportedModelError(_KEY, section, file=file, supported="an object")
    method = section.get("quant_method")
    reader = _READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        supported = ", ".join(_READERS)
        raise UnsupportedModelError(f"{_KEY}.quant_method", method, file=file, supported=supported)
    return reader(_Section(section, file, config))


@dataclass(frozen=True)
class _Section:
    """A `quantization_config` with where it is from."""

    values: Mapping[str, Any]
    file: str | None
    config: Any

    def refuse(self, key: str, supported: str) -> NoReturn:
        raise UnsupportedModelError(f"{_KEY}.{key}", self.values.get(key), file=self.file, supported=supported)

    def group_size(self, key: str = "group_size", default: int = -1) -> int:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and value != -1):
            self.refuse(key, "-1, or a number from 1")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        return bool(read_flag(self.values, key, default, file=self.file))

    def names(self, *keys: str) -> ModuleNames:
        """The lists under all of these keys together; null counts as empty."""
        found: list[str] = []
        for key in keys:
            entries = self.values.get(key)
            if entries is not None:
                found += ModuleNames(entries, f"{_KEY}.{key}", self.file).entries
        return ModuleNames(found, f"{_KEY}.{keys[0]}", self.file)


def _read_gptq(section: _Section) -> QuantizationPlan:
    values = section.values
    name = values.get("checkpoint_format") or "gptq"
    if not isinstance(name, str) or name not in _CHECKPOINT_FORMATS:
        section.refuse("checkpoint_format", ", ".join(_CHECKPOINT_FORMATS))
    if values.get("is_marlin_format"):
        section.refuse("is_marlin_format", "false")
    try:
        settings = QuantizationConfig(
            quant_method="gptq",
            bits=read_count(values, "bits", file=section.file),
            group_size=section.group_size(),
            desc_act=section.flag("desc_act", default=False),
            sym=section.flag("sym", default=False),
        )
    except UnsupportedModelError:
        raise
    except ValueError as error:
        raise UnsupportedModelError(_KEY, dict(values), file=section.file, supported=str(error)) from error
    scheme = GptqScheme(settings.bits, settings.group_size, settings.sym, _CHECKPOINT_FORMATS[name])
    groups = [*_dynamic_groups(section, scheme), LayerGroup(scheme)]
    return QuantizationPlan("gptq", groups, section.names("modules_to_not_convert"), settings)


def _dynamic_groups(section: _Section, scheme: GptqScheme) -> list[LayerGroup]:
    """GPTQ's exceptions: layers of `-:pattern` are not quantized, those of `+:pattern` or `pattern` have other
    settings."""
    stated = section.values.get("dynamic") or {}
    if not isinstance(stated, Mapping):
        section.refuse("dynamic", "an object")
    groups = []
    for pattern, changes in stated.items():
        bare = pattern.removeprefix("+:").removeprefix("-:")
        names = ModuleNames([f"re:{bare}"], f"{_KEY}.dynamic", section.file)
        if pattern.startswith("-:"):
            groups.append(LayerGroup(None, names))
            continue
        if not isinstance(changes, Mapping):
            section.refuse("dynamic", "an object of objects")
        inner = _Section({**section.values, **changes}, section.file, section.config)
        bits = read_count(inner.values, "bits", file=section.file)
        if bits not in (4, 8):
            inner.refuse("bits", "4, 8")
        changed = replace(
            scheme, bits=bits, group_size=inner.group_size(), symmetric=inner.flag("sym", default=scheme.symmetric)
        )
        groups.append(LayerGroup(changed, names))
    return groups


def _read_awq(section: _Section) -> QuantizationPlan:
    values = section.values
    bits = "bits" if "bits" in values else "w_bit"
    if values.get(bits) != 4:
        section.refuse(bits, "4")
    if str(values.get("version", "gemm")).lower() != "gemm":
        section.refuse("version", "gemm")
    if not section.flag("zero_point", default=True):
        section.refuse("zero_point", "true")
    size = section.group_size("group_size" if "group_size" in values else "q_group_size")
    return QuantizationPlan("awq", [LayerGroup(AwqScheme(size))], section.names("modules_to_not_convert"))


def _read_compressed_tensors(section: _Section) -> QuantizationPlan:
    return read_compressed_tensors(section.values, section.file)


def _read_fbgemm(section: _Section) -> QuantizationPlan:
    bound = read_number(section.values, "activation_scale_ub", None, file=section.file)
    scheme = FloatScheme("float8_e4m3fn", ("weight",), ("weight_scale",), (1, 0))
    scales = FloatScales(
        replace(_DYNAMIC_TOKEN, activation_scale_ub=bound),
        WeightScaleSpec(granularity=ScaleGranularity.ROWWISE, dtype=DType.float32),
        QuantFormat.FBGEMM_FP8,
    )
    return _float_plan(section, "fbgemm_fp8", scheme, scales)


def _read_fp8(section: _Section) -> QuantizationPlan:
    values = section.values
    activations = values.get("activation_scheme", "dynamic")
    if activations not in ("static", "dynamic"):
        section.refuse("activation_scheme", "static, dynamic")
    if values.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        section.refuse("fmt", "e4m3")
    names = ("weight_scale_inv", "weight_scale")
    block = values.get("weight_block_size")
    if block is not None:
        if not isinstance(block, (list, tuple)) or tuple(block) != _FP8_BLOCK:
            section.refuse("weight_block_size", "[128, 128], null")
        if activations != "dynamic":
            section.refuse("activation_scheme", "dynamic, with weight_block_size")
        scheme = FloatScheme("float8_e4m3fn", ("weight",), names, _FP8_BLOCK)
        scales = FloatScales(
            InputScaleSpec(
                granularity=ScaleGranularity.BLOCK,
                origin=ScaleOrigin.DYNAMIC,
                dtype=DType.float32,
                block_size=(1, _FP8_BLOCK[1]),
            ),
            WeightScaleSpec(granularity=ScaleGranularity.BLOCK, dtype=DType.float32, block_size=_FP8_BLOCK),
            QuantFormat.BLOCKSCALED_FP8,
        )
    else:
        scheme = FloatScheme("float8_e4m3fn", ("weight",), names, (0, 0))
        scales = _per_tensor(ScaleOrigin(activations))
    return _float_plan(section, "fp8", scheme, scales)


def _read_modelopt(section: _Section) -> QuantizationPlan:
    inner = section.values.get("quantization")
    values = inner if isinstance(inner, Mapping) else section.values
    section = _Section(values, section.file, section.config)
    algorithm = values.get("quant_algo")
    match algorithm:
        case "FP8":
            return _float_plan(section, "modelopt", _fp8_tensor(), _per_tensor(ScaleOrigin.STATIC))
        case "NVFP4":
            if values.get("group_size") not in (None, 16):
                section.refuse("group_size", "16")
            names = ("weight_packed", "weight")
            scheme = FloatScheme("float4_e2m1fnx2", names, ("weight_scale",), (1, 16), factor="weight_scale_2")
            return _float_plan(section, "modelopt", scheme, _blocks_of(QuantFormat.NVFP4, 16, DType.float8_e4m3fn))
        case "MXFP8":
            return _float_plan(section, "modelopt", *_mx("mxfp8"))
    section.refuse("quant_algo", "FP8, NVFP4, MXFP8")


def _read_mx(section: _Section) -> QuantizationPlan:
    method = str(section.values["quant_method"])
    return _float_plan(section, method, *_mx(method))


def _mx(name: str) -> tuple[FloatScheme, FloatScales]:
    elements = ("weight_packed", "weight") if name == "mxfp4" else ("weight",)
    scheme = FloatScheme(name, elements, ("weight_scale",), (1, 32), has_exponents=True)
    return scheme, _blocks_of(QuantFormat(name), 32, DType.float8_e8m0fnu)


def _fp8_tensor() -> FloatScheme:
    return FloatScheme("float8_e4m3fn", ("weight",), ("weight_scale",), (0, 0))


def _per_tensor(origin: ScaleOrigin) -> FloatScales:
    return FloatScales(
        InputScaleSpec(granularity=ScaleGranularity.TENSOR, origin=origin, dtype=DType.float32),
        WeightScaleSpec(granularity=ScaleGranularity.TENSOR, dtype=DType.float32),
        QuantFormat.COMPRESSED_TENSORS_FP8,
    )


def _blocks_of(format: QuantFormat, size: int, dtype: DType) -> FloatScales:
    is_static = format is QuantFormat.NVFP4
    return FloatScales(
        InputScaleSpec(
            granularity=ScaleGranularity.BLOCK,
            origin=ScaleOrigin.STATIC if is_static else ScaleOrigin.DYNAMIC,
            dtype=DType.float32 if is_static else dtype,
            block_size=(1, size),
        ),
        WeightScaleSpec(granularity=ScaleGranularity.BLOCK, dtype=dtype, block_size=(1, size)),
        format,
    )


def _float_plan(section: _Section, method: str, scheme: LayerScheme, scales: FloatScales) -> QuantizationPlan:
    ignored = section.names("modules_to_not_convert", "ignored_layers", "exclude_modules", "ignore")
    return QuantizationPlan(method, [LayerGroup(scheme)], ignored, scales=scales)


_READERS: Final[Mapping[str, Callable[[_Section], QuantizationPlan]]] = {
    "gptq": _read_gptq,
    "awq": _read_awq,
    "compressed-tensors": _read_compressed_tensors,
    "fbgemm_fp8": _read_fbgemm,
    "fp8": _read_fp8,
    "modelopt": _read_modelopt,
    "modelopt_fp4": _read_modelopt,
    "mxfp4": _read_mx,
    "mxfp8": _read_mx,
}


def with_quantized_layers(weights: Weights, config: Any) -> Weights:
    """A checkpoint with one weight for the tensors of each quantized layer, read as its configuration says.

    Raises:
        UnsupportedModelError: layers are quantized by a method that is not run, or the configuration names none.
        WeightsError: a layer's tensors are not what the configuration says.
    """
    plan = read_quantization(config)
    if plan is not None:
        return read_quantized(weights, plan.scheme_of)
    quantized = quantized_layers(weights)
    if quantized:
        supported = f"one that says how layers as {min(quantized)!r} are quantized"
        raise UnsupportedModelError(_KEY, None, file=config_source(config), supported=supported)
    return weights
