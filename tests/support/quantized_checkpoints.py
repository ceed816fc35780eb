"""Tiny quantized checkpoints in Hugging Face layout, written from the formats' descriptions, with what they stand for.

Every scheme turns a float matrix into the tensors that its tools write, and says which float32 matrix these mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from support.checkpoints import write_huggingface

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]
Layer = tuple[Tensors, Array]
"""The tensors of a layer by the last part of their names, and the matrix that they mean, float32."""

GPTQ_SECTION = {"quant_method": "gptq", "checkpoint_format": "gptq"}
AWQ_SECTION = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
SCALE_TYPES = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32}


def pack(codes: Array, bits: int, axis: int) -> Array:
    """Codes into int32 words along an axis, the first in the lowest bits; the last word is filled up with zeros."""
    per_word = 32 // bits
    moved = np.moveaxis(codes.astype(np.uint64), axis, -1)
    moved = np.pad(moved, [(0, 0)] * (moved.ndim - 1) + [(0, -moved.shape[-1] % per_word)])
    words = np.zeros((*moved.shape[:-1], moved.shape[-1] // per_word), np.uint64)
    for place in range(per_word):
        words |= moved[..., place::per_word] << np.uint64(bits * place)
    return np.ascontiguousarray(np.moveaxis(words.astype(np.uint32).view(np.int32), -1, axis))


@dataclass(frozen=True)
class Integers:
    """Codes from 0, scales and zero points of a matrix `[outputs, inputs]`, in groups of inputs."""

    codes: Array
    scales: Array
    zeros: Array
    groups: Array

    @property
    def values(self) -> Array:
        """The matrix that they mean."""
        zeros, scales = self.zeros[:, self.groups], self.scales.astype(np.float32)[:, self.groups]
        return (self.codes.astype(np.float32) - zeros.astype(np.float32)) * scales


def round_to_integers(
    matrix: Array, bits: int, size: int, *, symmetric: bool, scale_type: Any, groups: Array | None = None
) -> Integers:
    """The nearest codes, with the scale and the zero point that a group's extremes need."""
    inputs = matrix.shape[1]
    size = inputs if size == -1 else size
    groups = np.arange(inputs) // size if groups is None else groups
    count, top = int(groups.max()) + 1, 2**bits - 1
    scales = np.empty((matrix.shape[0], count), scale_type)
    zeros = np.full((matrix.shape[0], count), 2 ** (bits - 1), np.int32)
    for group in range(count):
        part = matrix[:, groups == group]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if symmetric:
            scales[:, group] = np.maximum(-low, high) / (2 ** (bits - 1) - 1)
        else:
            scales[:, group] = (high - low) / top
            zeros[:, group] = np.clip(np.rint(-low / scales[:, group].astype(np.float32)), 0, top)
    ratio = matrix / scales.astype(np.float32)[:, groups]
    codes = np.clip(np.rint(ratio) + zeros[:, groups], 0, top).astype(np.int32)
    return Integers(codes, scales, zeros, groups)


@dataclass(frozen=True)
class Scheme:
    """One way to quantize a checkpoint.

    Attributes:
        name: Its name.
        section: The `quantization_config`.
        layer: What it makes of a matrix.
        dtype: Element type of everything that is not quantized.
    """

    name: str
    section: Mapping[str, Any]
    layer: Callable[[Array], Layer] = field(compare=False)
    dtype: str = "float16"


def gptq(bits: int = 4, size: int = 32, *, sym: bool = True, version: int = 1, desc_act: bool = False) -> Scheme:
    """GPTQ; `desc_act`: inputs in groups out of order."""

    def layer(matrix: Array) -> Layer:
        groups = None
        if desc_act:
            width = matrix.shape[1] if size == -1 else size
            groups = np.random.default_rng(5).permutation(matrix.shape[1]) // width
        made = round_to_integers(matrix, bits, size, symmetric=sym, scale_type=np.float16, groups=groups)
        zeros = np.maximum(made.zeros, 1)  # the first version cannot write 0
        made = Integers(made.codes, made.scales, zeros, made.groups)
        offset = 1 if version == 1 else 0
        return {
            "qweight": pack(made.codes.T, bits, 0),
            "qzeros": pack(made.zeros.T - offset, bits, 1),
            "scales": np.ascontiguousarray(made.scales.T),
            "g_idx": made.groups.astype(np.int32),
        }, made.values

    section = {
        "quant_method": "gptq", "bits": bits, "group_size": size, "sym": sym, "desc_act": desc_act,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }
    kind = "sym" if sym else "asym"
    return Scheme(f"gptq{version}-{bits}-{size}-{kind}{'-desc_act' * desc_act}", section, layer)


def awq(size: int = 32) -> Scheme:
    """AWQ's layout for matrix products."""

    def layer(matrix: Array) -> Layer:
        made = round_to_integers(matrix, 4, size, symmetric=False, scale_type=np.float16)

        def packed(codes: Array) -> Array:
            columns = codes.reshape(codes.shape[0], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
            return pack(columns.reshape(codes.shape), 4, 1)

        return {
            "qweight": packed(made.codes.T),
            "qzeros": packed(made.zeros.T),
            "scales": np.ascontiguousarray(made.scales.T),
        }, made.values

    return Scheme(f"awq-{size}", {**AWQ_SECTION, "group_size": size}, layer)


def compressed(weights: Mapping[str, Any], format: str, activations: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A section of compressed-tensors with one group for all linear layers."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


def integers(
    bits: int, size: int, *, sym: bool = True, packed: bool = True, scale_type: str = "BF16", activations: bool = False
) -> Scheme:
    """compressed-tensors' integers: in groups of inputs (`size`), per output (-1) or per matrix (0)."""
    middle = 2 ** (bits - 1)

    def layer(matrix: Array) -> Layer:
        kind = SCALE_TYPES[scale_type]
        if size == 0:
            flat = round_to_integers(matrix.reshape(1, -1), bits, -1, symmetric=sym, scale_type=kind)
            groups = np.zeros(matrix.shape[1], np.int64)
            made = Integers(flat.codes.reshape(matrix.shape), flat.scales, flat.zeros, groups)
        else:
            made = round_to_integers(matrix, bits, size, symmetric=sym, scale_type=kind)
        found: Tensors = {"weight_scale": made.scales if size else made.scales.reshape(1)}
        if packed:
            found["weight_packed"] = pack(made.codes, bits, 1)
            found["weight_shape"] = np.array(matrix.shape, np.int64)
        else:
            found["weight"] = (made.codes - middle).astype(np.int8)
        if not sym and packed:
            found["weight_zero_point"] = pack(made.zeros, bits, 0)
        elif not sym:
            found["weight_zero_point"] = (made.zeros - middle).astype(np.int8).reshape(found["weight_scale"].shape)
        return found, made.values

    strategy = {0: "tensor", -1: "channel"}.get(size, "group")
    weights = {
        "num_bits": bits, "type": "int", "symmetric": sym, "strategy": strategy, "dynamic": False,
        "group_size": size if size > 0 else None,
    }
    inputs = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
    format = "pack-quantized" if packed else "int-quantized"
    section = compressed(weights, format, inputs if activations else None)
    name = f"int{bits}-{size}-{'sym' if sym else 'asym'}-{format}-{scale_type}"
    return Scheme(name, section, layer, dtype="bfloat16")


def scaled_float8(matrix: Array, tile: tuple[int, int], scale_type: Any) -> tuple[Array, Array, Array]:
    """E4M3 elements, scales `[tiles of outputs, tiles of inputs]`, and the matrix that they mean."""
    rows, columns = (size or whole for size, whole in zip(tile, matrix.shape, strict=True))
    counts = [-(-whole // size) for whole, size in zip(matrix.shape, (rows, columns), strict=True)]
    elements, values = np.empty(matrix.shape, ml_dtypes.float8_e4m3fn), np.empty(matrix.shape, np.float32)
    scales = np.empty(counts, scale_type)
    for i in range(counts[0]):
        for j in range(counts[1]):
            place = np.s_[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            scales[i, j] = np.abs(matrix[place]).max() / 448
            scale = np.float32(scales[i, j])
            elements[place] = np.clip(matrix[place] / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
            values[place] = elements[place].astype(np.float32) * scale
    return elements, scales, values


def fp8(kind: str) -> Scheme:
    """FP8: `tensor`, `channel`, `ct-block` of compressed-tensors `fbgemm`, `block`, `static`, `modelopt`."""
    tiles = {"tensor": (0, 0), "static": (0, 0), "modelopt": (0, 0), "channel": (1, 0), "fbgemm": (1, 0)}
    tile = tiles.get(kind, (128, 128))

    def layer(matrix: Array) -> Layer:
        scale_type = ml_dtypes.bfloat16 if kind == "channel" else np.float32
        elements, scales, values = scaled_float8(matrix, tile, scale_type)
        name = "weight_scale_inv" if kind == "block" else "weight_scale"
        found: Tensors = {"weight": elements, name: scales.reshape(()) if tile == (0, 0) else scales}
        if kind in ("static", "modelopt"):
            found["input_scale"] = np.float32([0.013]).reshape(())
        return found, values

    strategy = {"ct-block": "block"}.get(kind, kind)
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, "dynamic": False}
    if kind == "ct-block":
        weights["block_structure"] = [128, 128]
    inputs = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True}
    section: dict[str, Any] = {
        "fbgemm": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]},
        "block": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
        "static": {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
        "modelopt": {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]},
    }.get(kind, compressed(weights, "float-quantized", inputs))
    return Scheme(f"fp8-{kind}", section, layer, dtype="bfloat16")


def rounded_fp4(matrix: Array, scales: Array) -> tuple[Array, Array]:
    """E2M1 codes of a matrix over the scales of its elements, and the values of the codes."""
    ratio = matrix / scales
    nearest = np.abs(np.abs(ratio)[..., None] - FP4).argmin(-1)
    codes = (nearest | np.where(ratio < 0, 8, 0)).astype(np.uint8)
    return codes, np.where(codes & 8, -FP4[codes & 7], FP4[codes & 7])


def exponents_of(matrix: Array, top: float) -> Array:
    """E8M0 exponents of groups of 32: the power of two that brings the largest to `top` or below."""
    largest = np.abs(matrix.reshape(matrix.shape[0], -1, 32)).max(-1)
    return (np.ceil(np.log2(np.maximum(largest, 1e-20) / top)) + 127).astype(np.uint8)


def mxfp4() -> Scheme:
    """MXFP4 as compressed-tensors writes it."""

    def layer(matrix: Array) -> Layer:
        exponents = exponents_of(matrix, 6)
        scales = np.repeat(np.float32(2) ** (exponents.astype(np.float32) - 127), 32, axis=1)
        codes, elements = rounded_fp4(matrix, scales)
        packed = codes[:, ::2] | (codes[:, 1::2] << 4)
        return {"weight_packed": packed, "weight_scale": exponents}, elements * scales

    weights = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "dynamic": False}
    return Scheme("mxfp4", compressed(weights, "mxfp4-pack-quantized"), layer, dtype="bfloat16")


def mxfp8() -> Scheme:
    """MXFP8 as compressed-tensors writes it."""

    def layer(matrix: Array) -> Layer:
        exponents = exponents_of(matrix, 448)
        scales = np.repeat(np.float32(2) ** (exponents.astype(np.float32) - 127), 32, axis=1)
        elements = (matrix / scales).astype(ml_dtypes.float8_e4m3fn)
        return {"weight": elements, "weight_scale": exponents}, elements.astype(np.float32) * scales

    weights = {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "dynamic": False}
    return Scheme("mxfp8", compressed(weights, "mxfp8-quantized"), layer, dtype="bfloat16")


def nvfp4(tool: str = "compressed-tensors") -> Scheme:
    """NVFP4 by compressed-tensors, whose scale of the matrix divides, or by modelopt, whose multiplies."""

    def layer(matrix: Array) -> Layer:
        largest = np.abs(matrix.reshape(matrix.shape[0], -1, 16)).max(-1) / 6
        whole = np.float32(448 / largest.max())
        scales = np.maximum(largest * whole, 2.0**-9).astype(ml_dtypes.float8_e4m3fn)
        if tool == "modelopt":
            factor = np.float32(1) / whole
            effective = scales.astype(np.float32) * factor
        else:
            factor = whole
            effective = scales.astype(np.float32) / factor
        per_input = np.repeat(effective, 16, axis=1)
        codes, elements = rounded_fp4(matrix, per_input)
        packed = codes[:, ::2] | (codes[:, 1::2] << 4)
        inputs = np.float32([0.02])
        if tool == "modelopt":
            names = {"weight": packed, "weight_scale_2": factor.reshape(()), "input_scale": inputs.reshape(())}
        else:
            names = {"weight_packed": packed, "weight_global_scale": factor.reshape(1), "input_global_scale": inputs}
        return {**names, "weight_scale": scales}, elements * per_input

    weights = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "dynamic": False}
    section: dict[str, Any] = compressed(weights, "nvfp4-pack-quantized", {**weights, "dynamic": "local"})
    if tool == "modelopt":
        quantization = {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head*"]}
        section = {"quant_method": "modelopt", "producer": {"name": "modelopt"}, "quantization": quantization}
    return Scheme(f"nvfp4-{tool}", section, layer, dtype="bfloat16")


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        gptq(4, 32),
        gptq(4, -1, version=2),
        gptq(4, 32, sym=False),
        gptq(4, 32, sym=False, version=2),
        gptq(8, 32),
        gptq(8, -1, sym=False, version=2),
        gptq(4, 32, desc_act=True),
        gptq(8, 32, sym=False, desc_act=True),
        awq(32),
        awq(-1),
        integers(4, 32),
        integers(4, -1, scale_type="F32"),
        integers(4, 32, sym=False),
        integers(8, 32, scale_type="F16"),
        integers(8, -1, packed=False, activations=True),
        integers(8, 0, packed=False, scale_type="F32", activations=True),
        integers(8, -1, sym=False, packed=False),
        integers(4, 32, packed=False, scale_type="F16"),
        *(fp8(kind) for kind in ("tensor", "channel", "ct-block", "fbgemm", "block", "static", "modelopt")),
        mxfp4(),
        mxfp8(),
        nvfp4(),
        nvfp4("modelopt"),
    )
}


def quantize_tensors(
    tensors: Mapping[str, Array], scheme: Scheme, keeps: Callable[[str], bool]
) -> tuple[Tensors, Tensors]:
    """A checkpoint's tensors with its matrices quantized, and what they mean, float32.

    Args:
        tensors: Float32 tensors by the checkpoint's names.
        scheme: How matrices are quantized.
        keeps: Whether the layer of this name stays as it is.
    """
    kind = ml_dtypes.bfloat16 if scheme.dtype == "bfloat16" else np.dtype(scheme.dtype)
    stored: Tensors = {}
    meant: Tensors = {}
    for name, values in tensors.items():
        module, _, last = name.rpartition(".")
        if values.ndim == 2 and last == "weight" and not keeps(module):
            parts, meant[name] = scheme.layer(values)
            stored |= {f"{module}.{suffix}": part for suffix, part in parts.items()}
        else:
            stored[name] = values.astype(kind)
            meant[name] = stored[name].astype(np.float32)
    return stored, meant


def write_stored(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Array], *, dtype: str) -> Path:
    """A model directory of tensors as they are."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**config, "torch_dtype": dtype}))
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, directory / "model.safetensors")
    return directory


def write_quantized(
    directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Array], scheme: Scheme, *, keeps: Any = None
) -> tuple[Path, Path]:
    """Two model directories: the quantized checkpoint, and in float32 what it means.

    Embedding and output matrix stay as they are, unless `keeps` says otherwise.
    """
    names = ("embed", "wte", "tok_embeddings", "lm_head", "output")
    stored, meant = quantize_tensors(
        tensors, scheme, keeps or (lambda module: module.rpartition(".")[2].startswith(names))
    )
    quantized = {**config, "quantization_config": dict(scheme.section)}
    write_stored(directory / "quantized", quantized, stored, dtype=scheme.dtype)
    write_huggingface(directory / "meant", config, meant)
    return directory / "quantized", directory / "meant"
