"""Reading quantized layers: bad files give one sentence, whatever is in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from puna.engine.packed_cache.identity import source_key
from puna.errors import PunaError, UnsupportedModelError, WeightsError
from puna.graph.weights import WeightData, load_weights
from puna.graph.weights.quantized import QuantizedWeight
from puna.pipelines.lib import MAXModelConfig
from puna.pipelines.lib.quantization import read_quantization, with_quantized_layers
from puna.pipelines.lib.quantization.module_names import ModuleNames
from support.checkpoints import tiny_config
from support.quantized_checkpoints import SCHEMES, Scheme, compressed

Array = np.ndarray[Any, Any]
Parts = dict[str, Array]
SHAPE = (48, 64)
NAME = "model.layers.0.mlp.up_proj"
# More codes are a larger layer where one scale, or one row of them, is for all.
LARGER = {"awq--1", "int8-0-sym-int-quantized-F32", *(f"fp8-{kind}" for kind in ("tensor", "static", "modelopt"))}
LARGER |= {"fp8-block", "fp8-ct-block"}


def matrix(shape: tuple[int, int] = SHAPE) -> Array:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def read(directory: Path, section: Any, parts: Parts, name: str = NAME) -> WeightData:
    """The weight of one layer that is stored like this."""
    path = directory / "model.safetensors"
    save_file({f"{name}.{suffix}": np.ascontiguousarray(part) for suffix, part in parts.items()}, path)
    weights = with_quantized_layers(load_weights(path), {"quantization_config": section})
    return weights[name].weight.data()


def decode(directory: Path, scheme: Scheme, parts: Parts) -> Array:
    data = read(directory, scheme.section, parts)
    assert isinstance(data, QuantizedWeight)
    return np.asarray(data.widened().to_float32())


@pytest.mark.parametrize("name", SCHEMES)
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    """Each tensor but those that may be left out."""
    scheme = SCHEMES[name]
    parts, values = scheme.layer(matrix())
    optional = {"g_idx", "weight_shape", "input_scale", "input_global_scale"}
    if "sym" in name.split("-"):
        optional.add("qzeros")
    marks = {"qweight", "weight_packed", "weight_scale", "weight_scale_inv"}
    for suffix in parts:
        left = {key: part for key, part in parts.items() if key != suffix}
        if suffix in optional and not (suffix == "g_idx" and "desc_act" in name):
            np.testing.assert_array_equal(decode(tmp_path, scheme, left), values)
        elif suffix not in optional and left.keys() & (marks | {"weight"}):
            with pytest.raises(WeightsError, match=rf"{NAME}\.\w+'?: is missing|is missing"):
                decode(tmp_path, scheme, left)


@pytest.mark.parametrize("name", SCHEMES)
def test_wrong_shapes_are_named(tmp_path: Path, name: str) -> None:
    scheme = SCHEMES[name]
    parts, _ = scheme.layer(matrix())
    codes = {"weight", "qweight", "weight_packed"}
    for suffix, part in parts.items():
        if suffix.startswith("input_") or part.size == 1 or (suffix in codes and name in LARGER):
            continue
        changed = {**parts, suffix: np.concatenate([part, part[-1:]])}
        with pytest.raises(WeightsError, match=r"shape|states"):
            decode(tmp_path, scheme, changed)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", [name for name in SCHEMES if not name.startswith("mx")])
def test_scales_are_finite(tmp_path: Path, name: str, value: float) -> None:
    scheme = SCHEMES[name]
    parts, _ = scheme.layer(matrix())
    suffix = next(key for key in ("scales", "weight_scale_inv", "weight_scale") if key in parts)
    scales = parts[suffix].copy()
    scales.reshape(-1)[-1] = value
    with pytest.raises(WeightsError, match="not finite") as error:
        decode(tmp_path, scheme, {**parts, suffix: scales})
    assert error.value.tensor == f"{NAME}.{suffix}"


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8"])
def test_an_exponent_of_255_is_no_number(tmp_path: Path, name: str) -> None:
    parts, _ = SCHEMES[name].layer(matrix())
    parts["weight_scale"][-1, -1] = 255
    with pytest.raises(WeightsError, match="not finite"):
        decode(tmp_path, SCHEMES[name], parts)


def test_an_fp8_code_that_is_nan(tmp_path: Path) -> None:
    parts, _ = SCHEMES["fp8-channel"].layer(matrix())
    parts["weight"].view(np.uint8)[5, 7] = 0x7F
    with pytest.raises(WeightsError, match="a number that is not finite"):
        decode(tmp_path, SCHEMES["fp8-channel"], parts)


@pytest.mark.parametrize("group", [-1, 2])
def test_groups_that_there_are_not(tmp_path: Path, group: int) -> None:
    parts, _ = SCHEMES["gptq1-4-32-sym"].layer(matrix())
    parts["g_idx"][9] = group
    with pytest.raises(WeightsError, match=f"names group {group}, there are 2"):
        decode(tmp_path, SCHEMES["gptq1-4-32-sym"], parts)


def test_zero_points_that_contradict_sym(tmp_path: Path) -> None:
    """Also the second version of the format where the first is stated, and the other way round."""
    parts, _ = SCHEMES["gptq1-4-32-sym"].layer(matrix())
    parts["qzeros"][:] += 0x11111111
    with pytest.raises(WeightsError, match=r"holds the zero point 8 where sym = true promises the middle, 7"):
        decode(tmp_path, SCHEMES["gptq1-4-32-sym"], parts)


def test_codes_beyond_their_bits(tmp_path: Path) -> None:
    scheme = SCHEMES["int4-32-sym-int-quantized-F16"]
    parts, _ = scheme.layer(matrix())
    parts["weight"][3, 3] = 8
    with pytest.raises(WeightsError, match="does not fit into the 4 bits"):
        decode(tmp_path, scheme, parts)


def test_a_type_that_the_layout_does_not_have(tmp_path: Path) -> None:
    parts, _ = SCHEMES["awq-32"].layer(matrix())
    parts["scales"] = parts["scales"].astype(np.int32)
    with pytest.raises(WeightsError, match="has type int32"):
        decode(tmp_path, SCHEMES["awq-32"], parts)


def test_a_layer_that_the_configuration_leaves_out(tmp_path: Path) -> None:
    scheme = SCHEMES["int4-32-sym-pack-quantized-BF16"]
    parts, _ = scheme.layer(matrix())
    for entry in (NAME, "layers.0.mlp", "re:.*up_proj$", "model.layers.?.mlp.*"):
        with pytest.raises(WeightsError, match="leaves out"):
            read(tmp_path, {**scheme.section, "ignore": [entry]}, parts)
    for entry in ("model.layers.0.mlp.up", "re:up_proj", "layers.1", "mlp"):
        read(tmp_path, {**scheme.section, "ignore": [entry]}, parts)


def test_a_tensor_of_another_layout(tmp_path: Path) -> None:
    parts, _ = SCHEMES["awq-32"].layer(matrix())
    with pytest.raises(WeightsError, match="is no tensor of a layer in awq"):
        read(tmp_path, SCHEMES["awq-32"].section, {**parts, "g_idx": np.zeros(64, np.int32)})


def test_quantized_tensors_without_a_configuration(tmp_path: Path) -> None:
    parts, _ = SCHEMES["gptq1-4-32-sym"].layer(matrix())
    path = tmp_path / "model.safetensors"
    save_file({f"{NAME}.{suffix}": part for suffix, part in parts.items()}, path)
    with pytest.raises(UnsupportedModelError, match=f"quantization_config = None .*{re.escape(NAME)}"):
        with_quantized_layers(load_weights(path), {})


def test_scales_of_a_narrow_cache_are_left_out(tmp_path: Path) -> None:
    parts, _ = SCHEMES["fp8-channel"].layer(matrix())
    path = tmp_path / "model.safetensors"
    cache = {f"model.layers.0.self_attn.{name}_scale": np.ones(1, np.float32) for name in "kv"}
    save_file({f"{NAME}.{suffix}": part for suffix, part in parts.items()} | cache, path)
    section = {"quantization_config": SCHEMES["fp8-channel"].section}
    assert [name for name, _ in with_quantized_layers(load_weights(path), section).items()] == [f"{NAME}.weight"]


@pytest.mark.parametrize("method", ["bitsandbytes", "aqlm", "hqq", "quark", "eetq", None, 7, ["gptq"]])
def test_other_methods_are_refused_by_name(method: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=re.escape(f"quant_method = {method!r}")):
        read_quantization({"quantization_config": {"quant_method": method}})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, "bits = 3"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size = 0"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format = 'marlin'"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": {"a": 1}}, "checkpoint_format = {'a': 1}"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*down": {"bits": 2}}}, "bits = 2"),
        ({"quant_method": "awq", "bits": 8}, "bits = 8"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version = 'gemv'"),
        ({"quant_method": "awq", "bits": 4, "zero_point": False}, "zero_point = False"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, r"weight_block_size = \[64, 64\]"),
        ({"quant_method": "fp8", "activation_scheme": "none"}, "activation_scheme = 'none'"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo = 'W4A8_AWQ'"),
        (compressed({"num_bits": 3, "type": "int", "strategy": "channel"}, "pack-quantized"), "num_bits = 3"),
        (compressed({"num_bits": 4.0, "type": "int", "strategy": "channel"}, "pack-quantized"), "num_bits = 4.0"),
        (compressed({"num_bits": 4, "type": "int", "strategy": "block"}, "pack-quantized"), "strategy = 'block'"),
        (compressed({"num_bits": 4, "type": "int"}, "marlin-24"), "format = 'marlin-24'"),
        (compressed({"num_bits": 8, "type": "float", "strategy": "group"}, "float-quantized"), "group_size = None"),
        ({**compressed({}, "dense"), "transform_config": {"R1": {}}}, "transform_config"),
        ({**compressed({}, "dense"), "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
        ({**compressed({"num_bits": 8}, "int-quantized"), "quantization_status": "frozen"}, "quantization_status"),
    ],
)
def test_settings_that_are_not_run(section: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read_quantization({"quantization_config": section})


def test_mixed_schemes(tmp_path: Path) -> None:
    """Config groups by name before those by class, and GPTQ's exceptions."""
    four = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    section = compressed({"num_bits": 8, "type": "int", "strategy": "channel"}, "int-quantized")
    named = {"targets": ["re:.*down_proj$"], "weights": four, "format": "pack-quantized"}
    section["config_groups"]["group_1"] = named
    plan = read_quantization({"quantization_config": section})
    assert plan is not None
    schemes = [plan.scheme_of(f"model.layers.3.mlp.{name}_proj") for name in ("up", "down")]
    assert [scheme.encoding for scheme in schemes if scheme is not None] == ["int8", "int4"]
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}
    gptq["dynamic"] = {r"-:.*\.o_proj": {}, r"+:.*\.down_proj": {"bits": 8, "group_size": 64}}
    plan = read_quantization({"quantization_config": gptq})
    assert plan is not None
    assert plan.scheme_of("model.layers.0.self_attn.o_proj") is None
    for name, bits in (("down", 8), ("up", 4)):
        parts, values = SCHEMES[f"gptq1-{bits}-32-sym"].layer(matrix())
        if bits == 8:
            continue  # groups of 64 are another layer; its scheme is what counts here
        np.testing.assert_array_equal(np.asarray(read(tmp_path, gptq, parts, f"m.{name}_proj").to_float32()), values)
    assert getattr(plan.scheme_of("model.layers.0.mlp.down_proj"), "group_size", None) == 64


@pytest.mark.parametrize("pattern", ["(a+)+$", "(.*)*x", r"(a|b)*\1", ".*.*.*.*.*x", "(", "a{2", "x" * 2000])
def test_patterns_that_could_hang_are_refused(pattern: str) -> None:
    if pattern == "a{2":
        ModuleNames([f"re:{pattern}"], "ignore", None)  # a text of three characters, to Python
        return
    with pytest.raises(UnsupportedModelError, match="ignore"):
        ModuleNames([f"re:{pattern}"], "ignore", None)


@pytest.mark.parametrize("pattern", [".*lm_head", r"model\.layers\.(0|31)\..*", "^(?!.*down_proj).*$", r".*mlp\.gate$"])
def test_patterns_of_real_checkpoints(pattern: str) -> None:
    ModuleNames([f"re:{pattern}"], "ignore", None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 300) | st.floats() | st.sampled_from(["gptq", "Linear", "re:(", "-:x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted({
        *("bits", "group_size", "sym", "desc_act", "dynamic", "checkpoint_format", "version", "zero_point", "weights"),
        *("config_groups", "ignore", "targets", "num_bits", "type", "strategy", "block_structure", "format", "w_bit"),
        *("weight_block_size", "activation_scheme", "quant_algo", "quantization", "input_activations", "symmetric"),
        *("modules_to_not_convert", "activation_scale_ub", "group_0", "exclude_modules", "quantization_status"),
    })), inner, max_size=6),
    max_leaves=20,
)
METHODS = ["gptq", "awq", "compressed-tensors", "fbgemm_fp8", "fp8", "modelopt", "mxfp4", "mxfp8"]


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(METHODS), st.dictionaries(st.text(max_size=3), JSON, max_size=2), st.data())
def test_any_section_is_read_or_refused(method: str, section: dict[str, Any], data: st.DataObject) -> None:
    stated = data.draw(JSON)
    section |= stated if isinstance(stated, dict) else {"config_groups": stated}
    try:
        plan = read_quantization({"quantization_config": {**section, "quant_method": method}})
    except UnsupportedModelError:
        return
    assert plan is not None
    plan.scheme_of("model.layers.0.mlp.up_proj")


KINDS = [np.int32, np.int8, np.uint8, np.float16, np.float32, np.int64, ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SCHEMES)), st.data())
def test_any_tensors_are_read_or_refused(name: str, data: st.DataObject) -> None:
    """Tensors of random types, shapes and bytes in place of some of a layer's."""
    scheme = SCHEMES[name]
    parts, _ = scheme.layer(matrix())
    for suffix in list(parts):
        kind = data.draw(st.sampled_from([np.dtype(kind) for kind in KINDS]) | st.none())
        shape = data.draw(st.just(parts[suffix].shape) | st.lists(st.integers(0, 70), max_size=3).map(tuple))
        if data.draw(st.booleans()):
            kind = kind or parts[suffix].dtype
            size = int(np.prod(shape)) * kind.itemsize
            random = np.random.default_rng(data.draw(st.integers(0, 99)))
            parts[suffix] = random.integers(0, 256, size, np.uint8).view(kind).reshape(shape)
    with TemporaryDirectory() as root:
        try:
            values = decode(Path(root), scheme, parts)
        except PunaError as error:
            assert "\n" not in str(error)
            return
    assert np.isfinite(values).all()


def test_the_way_of_reading_is_part_of_a_weights_identity(tmp_path: Path) -> None:
    """The packed form of one reading must not be found by another, nor one precision's by the other's."""
    scheme = SCHEMES["gptq1-8-32-asym-desc_act"]
    parts, _ = scheme.layer(matrix())
    keys = set()
    for version in ("gptq", "gptq_v2"):
        data = read(tmp_path, {**scheme.section, "checkpoint_format": version}, parts)
        assert isinstance(data, QuantizedWeight)
        keys |= {source_key({"w": data}), source_key({"w": data.widened()}), source_key({"w": data.rows(0, 16)})}
    assert len(keys) == 6
    assert None not in keys


@pytest.mark.parametrize(
    ("name", "file", "section"),
    [
        ("gptq1-4-32-sym", "quantize_config.json",
         {"bits": 4, "group_size": 32, "desc_act": False, "sym": True, "damp_percent": 0.01}),
        ("awq-32", "quant_config.json", {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}),
        ("fp8-modelopt", "hf_quant_config.json",
         {"producer": {"name": "modelopt", "version": "0.29"},
          "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}}),
    ],
)  # fmt: skip
def test_settings_in_a_file_of_their_own(tmp_path: Path, name: str, file: str, section: dict[str, Any]) -> None:
    scheme = SCHEMES[name]
    parts, _ = scheme.layer(matrix((64, 64)))
    expected = decode(tmp_path, scheme, parts)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("llama")))
    (tmp_path / file).write_text(json.dumps(section))
    data = MAXModelConfig(model_path=str(tmp_path)).weights[f"{NAME}.weight"].data()
    assert isinstance(data, QuantizedWeight)
    assert np.array_equal(data.widened().to_float32(), expected)
    (tmp_path / file).write_text("[]")
    with pytest.raises(WeightsError, match=file):
        _ = MAXModelConfig(model_path=str(tmp_path)).weights


def test_show_and_load_name_the_encoding(tmp_path: Path) -> None:
    """The stored encoding decides what a checkpoint is called."""
    parts, _ = SCHEMES["awq-32"].layer(matrix((64, 64)))
    section = dict(SCHEMES["awq-32"].section)
    (tmp_path / "config.json").write_text(json.dumps({**tiny_config("llama"), "quantization_config": section}))
    read(tmp_path, section, parts)
    tensor = MAXModelConfig(model_path=str(tmp_path)).weights[f"{NAME}.weight"]
    assert (tensor.stored_as, tensor.shape) == ("awq", (64, 64))
    assert tensor.nbytes == sum(part.nbytes for part in parts.values())
    assert str(tensor.quantization_encoding) == "Q5_0"
