"""Quantized checkpoints against the tools that write them: compressed-tensors, AutoGPTQ, AutoAWQ, torch's FP8.

Checkpoints of compressed-tensors are written by it, configuration and all, and its own decompression says what they
mean. AutoGPTQ and AutoAWQ are of the time of older transformers: the modules that pack and unpack are loaded by
themselves.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from puna.graph.weights.quantized import QuantizedWeight
from support.family_model import all_logits, load_family, random_prompt
from support.quantized_checkpoints import AWQ_SECTION, GPTQ_SECTION, write_stored

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
compressed_tensors = pytest.importorskip("compressed_tensors")

pytestmark = pytest.mark.oracle

SIZES = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 160, "max_position_embeddings": 64, "attention_bias": True,
}
PROMPTS = [random_prompt(160, length, seed=length) for length in (23, 1, 9)]
# Presets of compressed-tensors; those whose decompression is in bfloat16 come with how far that may be off.
PRESETS = {
    "W4A16": 0,
    "W4A16_ASYM": 0,
    "W8A16": 0,
    "INT8": 0,
    "W8A8": 0,
    "FP8": 0,
    "FP8_DYNAMIC": 0,
    "FP8_BLOCK": 0,
    "W4AFP8": 0,
    "MXFP4": 0,
    "MXFP8": 0,
    "MXFP8A16": 0,
    "NVFP4": 2**-7,
    "NVFP4A16": 2**-7,
}


def llama() -> Any:
    torch.manual_seed(3)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.1)
        elif parameter.ndim == 2:
            parameter.data.normal_(std=0.15)
    return model.eval()


def linears(model: Any) -> dict[str, Any]:
    """Layers by name, the output matrix left out."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return {name: module for name, module in found.items() if name != "lm_head"}


def extremes(weight: Any, arguments: Any) -> tuple[Any, Any]:
    """Least and greatest weights of what shares a scale."""
    match str(arguments.strategy):
        case "tensor":
            return weight.min().reshape(1), weight.max().reshape(1)
        case "channel":
            return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        case "block":
            rows, columns = arguments.block_structure
            places = [
                [(slice(i, i + rows), slice(j, j + columns)) for j in range(0, weight.shape[1], columns)]
                for i in range(0, weight.shape[0], rows)
            ]
            least = [[weight[place].min() for place in line] for line in places]
            return torch.tensor(least), torch.tensor([[weight[place].max() for place in line] for line in places])
    groups = weight.reshape(weight.shape[0], -1, arguments.group_size)
    return groups.amin(-1), groups.amax(-1)


def write_compressed(preset: str, directory: Path) -> None:
    """A checkpoint by compressed-tensors alone: its scheme, its scales, its compression, its configuration."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        apply_quantization_config,
        preset_name_to_scheme,
    )
    from compressed_tensors.quantization.utils.helpers import calculate_qparams, generate_gparam

    model = llama().to(torch.bfloat16)
    scheme = preset_name_to_scheme(preset, ["Linear"])
    if scheme.weights.group_size == 128:
        scheme.weights.group_size = 32
    groups = {"group_0": scheme}
    stated = QuantizationConfig(config_groups=groups, ignore=["re:.*lm_head$"], quantization_status="initialized")
    apply_quantization_config(model, stated)
    for module in linears(model).values():
        weight, whole = module.weight.data.float(), None
        if hasattr(module, "weight_global_scale"):
            whole = generate_gparam(weight.min().reshape(1), weight.max().reshape(1))
            module.weight_global_scale.data = whole
        scales, zeros = calculate_qparams(*extremes(weight, scheme.weights), scheme.weights, global_scale=whole)
        module.weight_scale.data = scales.to(module.weight_scale.dtype)
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data = zeros.to(module.weight_zero_point.dtype)
        for name in ("input_scale", "input_global_scale"):
            if hasattr(module, name):
                getattr(module, name).data.fill_(0.5)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(directory)
    compressor.update_config(directory)


def decompressed(directory: Path) -> dict[str, Any]:
    """The matrices of a checkpoint by compressed-tensors' own decompression, in float32 where it computes so."""
    from compressed_tensors.compressors import decompress_module

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    found = {}
    for name, module in linears(model).items():
        decompress_module(module)
        found[name] = module.weight.detach().float()
    return found


def expected_logits(matrices: dict[str, Any], dtype: Any) -> list[Any]:
    """Logits of transformers in float32 with these matrices; what is not quantized was stored in `dtype`."""
    model = llama()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    for name, module in linears(model).items():
        module.weight.data = matrices[name]
    with torch.no_grad():
        return [model(torch.tensor([prompt])).logits[0].numpy() for prompt in PROMPTS]


def quantized_weights(directory: Path) -> dict[str, QuantizedWeight]:
    model = load_family(directory, precision="float32")
    found = {name: weight for name, weight in model.state_dict.items() if isinstance(weight, QuantizedWeight)}
    assert len(found) == 14
    return found


def check_logits(directory: Path, expected: list[Any], tolerance: float) -> None:
    for mine, theirs in zip(all_logits(load_family(directory), PROMPTS), expected, strict=True):
        assert np.abs(mine - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("preset", PRESETS)
def test_compressed_tensors(tmp_path: Path, preset: str) -> None:
    write_compressed(preset, tmp_path)
    matrices = decompressed(tmp_path)
    for name, weight in quantized_weights(tmp_path).items():
        theirs = matrices[f"model.{name.removesuffix('.weight')}"].numpy()
        np.testing.assert_allclose(weight.to_float32(), theirs, rtol=PRESETS[preset], atol=0, err_msg=name)
    check_logits(tmp_path, expected_logits(matrices, torch.bfloat16), 1e-4 if not PRESETS[preset] else 2e-2)


def load_module(package: str, path: str) -> Any:
    """A module of an installed package, without the package itself."""
    place = importlib.metadata.distribution(package).locate_file(path)
    spec = importlib.util.spec_from_file_location(Path(path).stem, str(place))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_layers(directory: Path, section: dict[str, Any], layers: dict[str, dict[str, Any]]) -> None:
    """A checkpoint in float16 with these layers in place of the matrices of `llama`."""
    model = llama().half()
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for name, parts in layers.items():
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.{suffix}": np.asarray(part) for suffix, part in parts.items()}
    config = json.loads(model.config.to_json_string(use_diff=False))
    write_stored(directory, {**config, "quantization_config": section}, tensors, dtype="float16")


@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("size", [-1, 32, 64])
@pytest.mark.parametrize("bits", [4, 8])
def test_auto_gptq(tmp_path: Path, bits: int, size: int, sym: bool, desc_act: bool) -> None:
    """AutoGPTQ packs; the product of its layer with the identity says what the layer means, in float16."""
    layer_of = load_module("auto_gptq", "auto_gptq/nn_modules/qlinear/qlinear_cuda.py").QuantLinear
    layers, matrices = {}, {}
    random = torch.Generator().manual_seed(7)
    for name, module in linears(llama()).items():
        weight = module.weight.data
        outputs, inputs = weight.shape
        width = inputs if size == -1 else size
        groups = torch.arange(inputs) // width
        if desc_act:
            groups = groups[torch.randperm(inputs, generator=random)]
        low = torch.stack([weight[:, groups == g].amin(1).clamp(max=0) for g in range(inputs // width)], 1)
        high = torch.stack([weight[:, groups == g].amax(1).clamp(min=0) for g in range(inputs // width)], 1)
        if sym:
            scales, zeros = torch.maximum(-low, high) / (2 ** (bits - 1) - 1), torch.full_like(low, 2 ** (bits - 1))
        else:
            scales = (high - low) / (2**bits - 1)
            zeros = (-low / scales).round().clamp(1, 2**bits - 1)
        scales = scales.half().float()
        # The weights lie on the grid, so that packing has nothing to round or to clip.
        codes = ((weight / scales[:, groups]).round() + zeros[:, groups]).clamp(0, 2**bits - 1)
        module.weight.data = (codes - zeros[:, groups]) * scales[:, groups]
        packed = layer_of(bits, size, inputs, outputs, module.bias is not None)
        packed.pack(module, scales, zeros, groups.int())
        parts = {key: value for key, value in packed.state_dict().items() if key != "bias"}
        layers[name] = parts
        packed.bias = None
        matrices[name] = packed.half()(torch.eye(inputs).half()).T
    write_layers(tmp_path, {**GPTQ_SECTION, "bits": bits, "group_size": size, "sym": sym, "desc_act": desc_act}, layers)
    for name, weight in quantized_weights(tmp_path).items():
        theirs = matrices[f"model.{name.removesuffix('.weight')}"].numpy()
        np.testing.assert_array_equal(weight.to_float32().astype(np.float16), theirs, err_msg=name)
    check_logits(tmp_path, expected_logits({name: m.float() for name, m in matrices.items()}, torch.float16), 5e-3)


@pytest.mark.parametrize("size", [32, 64])
def test_auto_awq(tmp_path: Path, size: int) -> None:
    """Random words: AutoAWQ's unpacking says what they mean."""
    unpack = load_module("autoawq", "awq/utils/packing_utils.py").dequantize_gemm
    random = np.random.default_rng(11)

    def words(rows: int, columns: int) -> Any:
        return torch.from_numpy(random.integers(-(2**31), 2**31, (rows, columns // 8)).astype(np.int32))

    layers, matrices = {}, {}
    for name, module in linears(llama()).items():
        outputs, inputs = module.weight.shape
        scales = torch.from_numpy((random.random((inputs // size, outputs)) * 0.02).astype(np.float16))
        layers[name] = {
            "qweight": words(inputs, outputs),
            "qzeros": words(inputs // size, outputs),
            "scales": scales,
        }
        matrices[name] = unpack(layers[name]["qweight"], layers[name]["qzeros"], scales.float(), 4, size).T
    write_layers(tmp_path, {**AWQ_SECTION, "group_size": size}, layers)
    for name, weight in quantized_weights(tmp_path).items():
        assert weight.format == "Q5_0"
        theirs = matrices[f"model.{name.removesuffix('.weight')}"].numpy()
        np.testing.assert_array_equal(weight.to_float32(), theirs, err_msg=name)
    check_logits(tmp_path, expected_logits(matrices, torch.float16), 1e-4)


@pytest.mark.parametrize("kind", ["block", "fbgemm", "static"])
def test_fp8(tmp_path: Path, kind: str) -> None:
    """torch rounds to FP8 and converts back."""
    sections = {
        "block": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
        "fbgemm": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
        "static": {"quant_method": "fp8", "activation_scheme": "static"},
    }
    layers, matrices = {}, {}
    for name, module in linears(llama()).items():
        weight = module.weight.data
        rows, columns = {"block": (128, 128), "fbgemm": (1, weight.shape[1])}.get(kind, tuple(weight.shape))
        padded = torch.nn.functional.pad(weight, [0, -weight.shape[1] % columns, 0, -weight.shape[0] % rows])
        tiles = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
        scales = tiles.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
        whole = scales.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[: weight.shape[0], : weight.shape[1]]
        elements = (weight / whole).to(torch.float8_e4m3fn)
        matrices[name] = elements.float() * whole
        codes = elements.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
        layers[name] = {"weight": codes, "weight_scale_inv" if kind == "block" else "weight_scale": scales.numpy()}
        if kind == "static":
            layers[name] |= {"weight_scale": scales.reshape(()).numpy(), "input_scale": np.float32(0.5).reshape(())}
    write_layers(tmp_path, sections[kind], layers)
    for name, weight in quantized_weights(tmp_path).items():
        theirs = matrices[f"model.{name.removesuffix('.weight')}"].numpy()
        np.testing.assert_array_equal(weight.to_float32(), theirs, err_msg=name)
    check_logits(tmp_path, expected_logits(matrices, torch.float16), 1e-4)
