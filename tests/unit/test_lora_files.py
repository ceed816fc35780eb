"""Files of adapters: what they may say, and that whatever else they say is refused in a sentence that names it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.engine.adapters import AdapterKey
from puna.errors import AdapterError
from puna.pipelines.lora import LoRAAdapter, read_adapter, read_updates
from support.adapters import PRODUCTS, module_shapes, random_pairs, write_gguf_adapter, write_peft
from support.tiny_model import CONFIG

QV = module_shapes(CONFIG, ("q_proj", "v_proj"))
PAIRS = random_pairs(QV, 4, 1)


def read(path: Path, max_rank: int = 16) -> LoRAAdapter:
    return read_adapter("x", path, PRODUCTS, max_rank)


def refused(path: Path, message: str, max_rank: int = 16) -> None:
    with pytest.raises(AdapterError, match=message):
        read(path, max_rank)


def scales(path: Path) -> dict[str, float]:
    return {str(key): update.scale for key, update in read_updates(path, PRODUCTS).items()}


def test_scales(tmp_path: Path) -> None:
    assert set(scales(write_peft(tmp_path / "1", PAIRS, lora_alpha=6)).values()) == {1.5}
    assert set(scales(write_peft(tmp_path / "2", PAIRS, lora_alpha=6, use_rslora=True)).values()) == {3.0}
    alphas = {"layers.0.self_attn.q_proj": 12, r"layers\.1\..*": 2}
    found = scales(write_peft(tmp_path / "3", PAIRS, lora_alpha=8, alpha_pattern=alphas))
    assert found == {
        "layers.0.self_attn.q_proj": 3.0,
        "layers.0.self_attn.v_proj": 2.0,
        "layers.1.self_attn.q_proj": 0.5,
        "layers.1.self_attn.v_proj": 0.5,
    }


def test_ranks_by_pattern(tmp_path: Path) -> None:
    queries = {name: shape for name, shape in QV.items() if "q_proj" in name}
    pairs = PAIRS | random_pairs(queries, 7, 2)
    path = write_peft(tmp_path / "1", pairs, r=4, lora_alpha=14, rank_pattern={"q_proj": 7})
    assert scales(path)["layers.0.self_attn.q_proj"] == 2.0
    assert scales(path)["layers.0.self_attn.v_proj"] == 3.5
    assert read(path).rank == 7
    refused(path, r"'base_model.*q_proj.lora_B.weight': has rank 7, max_lora_rank is 6", 6)
    refused(write_peft(tmp_path / "2", pairs, r=4), "has rank 7, adapter_config.json says 4")


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.(q|v)_proj"},
        {"target_modules": r"model\.layers\.\d+\.self_attn\.(?:q_proj|v_proj)"},
        {"target_modules": ["self_attn.q_proj", "v_proj"]},
        {"layers_to_transform": [0, 1]},
        {"exclude_modules": ["k_proj"]},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.1, "loftq_config": {}, "megatron_core": "megatron.core"},
        {"eva_config": None, "layers_pattern": "layers", "inference_mode": False, "peft_version": "0.21.2"},
    ],
)
def test_targets(tmp_path: Path, options: dict[str, Any]) -> None:
    assert len(scales(write_peft(tmp_path / "a", PAIRS, **options))) == 4


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\]"),
    ({"bias": "all"}, "bias = 'all'.*supported: none"),
    ({"bias": "lora_only"}, "bias = 'lora_only'"),
    ({"use_dora": True}, "use_dora = True.*DoRA"),
    ({"lora_bias": True}, "lora_bias = True"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out = True"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"target_parameters": ["experts"]}, "target_parameters"),
    ({"use_qalora": True}, "use_qalora"),
    ({"ensure_weight_tying": True}, "ensure_weight_tying"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4'.*PEFT can convert"),
    ({"init_lora_weights": "olora"}, "init_lora_weights = 'olora'"),
    ({"something_new": {"x": 1}}, "something_new = {'x': 1}"),
    ({"peft_type": "IA3"}, "peft_type = 'IA3'.*supported: LORA"),
    ({"peft_type": None}, "peft_type = None"),
    ({"r": 0}, "r = 0"),
    ({"r": True}, "r = True"),
    ({"r": "8"}, "r = '8'"),
    ({"r": None}, "r = None"),
    ({"r": 8}, "has rank 4, adapter_config.json says 8"),
    ({"lora_alpha": None}, "lora_alpha = None"),
    ({"lora_alpha": float("nan")}, "lora_alpha = nan"),
    ({"rank_pattern": {"q_proj": 5}}, "has rank 4, adapter_config.json says 5"),
    ({"rank_pattern": [4]}, "rank_pattern"),
    ({"rank_pattern": {"q_proj": 1.5}}, "rank_pattern = 1.5"),
    ({"alpha_pattern": {"q_proj": "a"}}, "alpha_pattern = 'a'"),
    ({"alpha_pattern": {"(": 1}}, r"alpha_pattern = .*supported: regular expressions"),
    ({"target_modules": ["q_proj"]}, "v_proj is not among target_modules"),
    ({"target_modules": r".*\.q_proj"}, "v_proj is not among target_modules"),
    ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "target_modules = 'k_proj'"),
    ({"target_modules": r"(?=x)y"}, "regular expressions without look-around"),
    ({"target_modules": "(" * 5000}, "at most 4096 characters"),
    ({"target_modules": [1]}, r"target_modules = \[1\]"),
    ({"target_modules": None}, "target_modules = None"),
    ({"exclude_modules": ["v_proj"]}, "v_proj is not among target_modules"),
    ({"layers_to_transform": [0]}, "layers.1.* is not among target_modules"),
    ({"layers_to_transform": "x"}, "layers_to_transform"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_options_that_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    refused(write_peft(tmp_path / "a", PAIRS, **options), message)


def test_patterns_take_linear_time(tmp_path: Path) -> None:
    """A backtracking engine takes longer than the universe lasts."""
    name = "model.layers.0." + "a" * 3000
    refused(
        write_peft(tmp_path / "a", {name: PAIRS["model.layers.0.self_attn.q_proj"]}, target_modules=r"(.*a)*b"),
        "is not among target_modules",
    )


def tensors(**changes: Any) -> dict[str, Any]:
    return {name: changes.get(name.rsplit(".", 1)[-1], pair) for name, pair in PAIRS.items()}


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    a, b = PAIRS["model.layers.0.self_attn.q_proj"]
    cases: list[tuple[dict[str, Any], str]] = [
        (tensors(q_proj=(a, b[:32])), r"has 32 outputs, the model's has 64"),
        (tensors(q_proj=(a[:, :32], b)), "has 64 outputs of 32 inputs, the model's has 64 of 64"),
        (tensors(q_proj=(a[:3], b)), "their ranks differ"),
        (tensors(q_proj=(a[:, :, None], b)), "their ranks differ"),
        (tensors(q_proj=(a * np.float32(np.nan), b)), "lora_A.weight': holds numbers that are not finite"),
        (tensors(q_proj=(a, b * np.float32(np.inf))), "lora_B.weight': holds numbers that are not finite"),
        (tensors(q_proj=(a.astype(np.float64), b)), "dtype of .*lora_A.weight = 'float64'"),
        (tensors(q_proj=(a.astype(np.int8), b)), "dtype of .*lora_A.weight = 'int8'"),
        ({"model.layers.9.self_attn.q_proj": (a, b)}, "belongs to a layer beyond num_hidden_layers = 2"),
        ({"model.layers.0.input_layernorm": (a, b)}, "an adapter's module = "),
        ({"model.layers.0.mlp.experts.0.w1": (a, b)}, "is no tensor of a Llama-shaped decoder"),
        ({"model.embed_tokens": (a, b)}, "has 64 outputs, the model's has 900|lora_embedding_A"),
    ]
    for number, (pairs, message) in enumerate(cases):
        with np.errstate(all="ignore"):
            refused(write_peft(tmp_path / str(number), pairs, target_modules="all-linear"), message)


def test_other_tensors_are_refused_by_name(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    q = "base_model.model.model.layers.0.self_attn.q_proj"
    cases = {
        f"{q}.lora_magnitude_vector": "DoRA",
        f"{q}.lora_B.bias": "without biases",
        "base_model.model.lm_head.modules_to_save.weight": "modules_to_save, are not",
        "base_model.model.model.embed_tokens.weight": "modules_to_save, are not",
        "model.layers.0.self_attn.q_proj.lora_A.weight": "names of the form base_model.model.MODULE",
        f"{q}.lora_embedding_A": "needs lora_A and lora_B, it has A, B, embedding A",
    }
    for number, (name, message) in enumerate(cases.items()):
        path = write_peft(tmp_path / str(number), PAIRS)
        file = path / "adapter_model.safetensors"
        save_file(load_file(file) | {name: np.zeros((4, 64), np.float32)}, file)
        refused(path, message)
    path = write_peft(tmp_path / "half", PAIRS)
    file = path / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k != f"{q}.lora_B.weight"}, file)
    refused(path, "needs lora_A and lora_B, it has A")
    save_file({}, file)
    refused(path, "has no tensors")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "missing", "missing: does not exist")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "has no adapter_config.json")
    (tmp_path / "file.bin").write_bytes(b"x")
    refused(tmp_path / "file.bin", "is no directory with an adapter and no .gguf file")
    path = write_peft(tmp_path / "a", PAIRS)
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    refused(path, "adapter_model.bin is a pickle, which can run code and is never read")
    for content in (b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"1"):
        (path / "adapter_config.json").write_bytes(content)
        refused(path, "is not JSON|is no JSON object|recursion")
    (path / "adapter_config.json").write_bytes(b" " * ((1 << 20) + 1))
    refused(path, "at most 1048576 bytes are read")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        for make in (os.mkfifo, os.mkdir):
            path = write_peft(tmp_path / f"{make.__name__}_{name}", PAIRS)
            (path / name).unlink()
            make(path / name)
            refused(path, "is not a regular file")
    os.mkfifo(tmp_path / "pipe.gguf")
    refused(tmp_path / "pipe.gguf", "is not a regular file")


def test_links_do_not_leave_the_directory(tmp_path: Path) -> None:
    outside = write_peft(tmp_path / "outside", PAIRS)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        path = write_peft(tmp_path / f"with_{name}", PAIRS)
        (path / name).unlink()
        (path / name).symlink_to(outside / name)
        refused(path, "leads out of the directory")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files_give_one_kind_of_error(tmp_path: Path, data: st.DataObject) -> None:
    path = write_peft(tmp_path / "a", PAIRS)
    name = data.draw(st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]))
    content = bytearray((path / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 900) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    (path / name).write_bytes(bytes(content))
    try:
        read(path)
    except AdapterError as error:
        assert "\n" not in str(error)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_gguf_files_give_one_kind_of_error(tmp_path: Path, data: st.DataObject) -> None:
    pairs = random_pairs({"blk.0.attn_q": (64, 64), "blk.1.ffn_down": (64, 96)}, 4, 1)
    path = write_gguf_adapter(tmp_path / "a.gguf", pairs, 8.0)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 500))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(1, len(content))) :]
    path.write_bytes(bytes(content))
    try:
        read(path)
    except AdapterError as error:
        assert "\n" not in str(error)


def test_any_config_gives_one_kind_of_error(tmp_path: Path) -> None:
    path = write_peft(tmp_path / "a", PAIRS)
    config = json.loads((path / "adapter_config.json").read_text())
    for key in config:
        for value in (None, 0, -1, 1e400, "", "x", [], [None], {}, {"x": None}, True, [[]], {"q_proj": [1]}):
            (path / "adapter_config.json").write_text(json.dumps(config | {key: value}))
            try:
                read(path)
            except AdapterError:
                continue


def test_adapters_of_llama_cpp(tmp_path: Path) -> None:
    pairs = random_pairs({"blk.0.attn_q": (64, 64), "blk.1.ffn_down": (64, 96)}, 4, 1)
    found = read_updates(write_gguf_adapter(tmp_path / "a.gguf", pairs, 8.0), PRODUCTS)
    assert {update.scale for update in found.values()} == {2.0}
    b = found[AdapterKey(0, "self_attn.q_proj")].b.data
    stored = pairs["blk.0.attn_q"][1].reshape(4, 8, 2, 4).swapaxes(1, 2).reshape(64, 4)
    np.testing.assert_array_equal(b, stored)  # in halves, as the model's rows are
    assert set(scales(write_gguf_adapter(tmp_path / "0.gguf", pairs, 0.0)).values()) == {1.0}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"type": "model"}, "general.type = 'model'"),
        ({"adapter_type": "control_vector"}, "adapter.type = 'control_vector'"),
        ({"architecture": "qwen2"}, "general.architecture = 'qwen2'.*supported: llama"),
    ]
    for number, (changes, message) in enumerate(cases):
        refused(write_gguf_adapter(tmp_path / f"{number}.gguf", pairs, 8.0, **changes), message)
    refused(write_gguf_adapter(tmp_path / "nan.gguf", pairs, float("nan")), "adapter.lora.alpha = nan")
    bad = pairs | {"blk.0.attn_norm": pairs["blk.0.attn_q"]}
    refused(write_gguf_adapter(tmp_path / "norm.gguf", bad, 8.0), "blk.0.attn_norm|input_layernorm")
    wide = random_pairs({"blk.0.attn_q": (64, 32)}, 4, 1)
    refused(write_gguf_adapter(tmp_path / "wide.gguf", wide, 8.0), "the model's has 64 of 64")
    content = (tmp_path / "a.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[:-100])
    refused(tmp_path / "cut.gguf", "reach past the end of the file")
