"""Loading and running models: what is checked, what is returned, and what each error says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.driver import CPU, Buffer
from puna.dtype import DType
from puna.engine import InferenceSession, MachineLimits, Model, Trace
from puna.engine.model import TensorMetadata
from puna.engine.native_program import LoadReport, NativeExecutor
from puna.errors import DTypeError, InvalidRequestError, ShapeError, UnsupportedModelError, WeightsError
from puna.graph import BATCH_SIZE, TOTAL_SEQ_LEN, DeviceRef, Graph, TensorType, Weight, ops
from puna.graph.weights.weight_data import WeightData
from puna.nn.decoder_spec import ReturnHiddenStates, ReturnLogits, default_hidden_state_layers
from puna.nn.kv_cache import KVCacheParams
from puna.nn.transformer import build_decoder_graph
from support.fake_native import FakeNative
from support.tiny_decoder import TinyCache, random_tokens, tiny_spec, tiny_weights


def reference_model(**knobs: Any) -> tuple[Any, Model]:
    spec = tiny_spec(**knobs)
    weights = tiny_weights(spec)
    return spec, InferenceSession(num_threads=1).load(
        build_decoder_graph(spec, weights), weights, executor="reference"
    )


def step(spec: Any, lengths: list[int], n: int = 1) -> list[Any]:
    return list(TinyCache.make(spec, len(lengths), 16).inputs(random_tokens(spec, lengths), n))


def test_outputs_of_every_mode() -> None:
    lengths, n = [3, 2, 4], 2
    everything: dict[ReturnLogits, list[np.ndarray[Any, Any]]] = {}
    for mode in ReturnLogits:
        spec, model = reference_model(return_logits=mode)
        outputs = [output.to_numpy() for output in model.execute(*step(spec, lengths, n))]
        everything[mode] = outputs
        assert outputs[0].shape == (3, 96) and outputs[0].dtype == np.float32
        assert len(outputs) == (1 if mode is ReturnLogits.LAST_TOKEN else 3)
    logits, offsets = everything[ReturnLogits.VARIABLE][1:]
    assert logits.shape == (6, 96)
    assert offsets.tolist() == [0, 2, 4, 6] and offsets.dtype == np.int64
    full, row_offsets = everything[ReturnLogits.ALL][1:]
    assert full.shape == (9, 96)
    assert row_offsets.tolist() == [0, 3, 5, 9] and row_offsets.dtype == np.uint32
    np.testing.assert_allclose(logits, full[[1, 2, 3, 4, 7, 8]], rtol=1e-4, atol=1e-5)
    for outputs in everything.values():
        np.testing.assert_allclose(outputs[0], full[[2, 4, 8]], rtol=1e-4, atol=1e-5)


def test_hidden_states_of_every_mode() -> None:
    lengths = [3, 1]
    states: dict[ReturnHiddenStates, np.ndarray[Any, Any]] = {}
    for mode in ReturnHiddenStates:
        spec, model = reference_model(return_hidden_states=mode, num_layers=9)
        outputs = model.execute(*step(spec, lengths))
        names = [output.name for output in model.output_metadata]
        assert names == ["next_token_logits"] + ["hidden_states"] * (mode is not ReturnHiddenStates.NONE)
        states[mode] = outputs[-1].to_numpy()
    every = states[ReturnHiddenStates.ALL]
    assert every.shape == (4, 64)
    # The reference executor's products are NumPy's, whose order of sums may depend on the number of rows.
    np.testing.assert_allclose(states[ReturnHiddenStates.LAST], every[[2, 3]], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(states[ReturnHiddenStates.LAST_PER_DEVICE], states[ReturnHiddenStates.LAST])
    weight = tiny_weights(tiny_spec(num_layers=9))["norm.weight"].data
    normalized = every / np.sqrt(np.mean(np.square(every), axis=1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(states[ReturnHiddenStates.ALL_NORMALIZED], normalized, rtol=1e-5)
    chosen = states[ReturnHiddenStates.EAGLE3]
    assert chosen.shape == (4, 3 * 64) and default_hidden_state_layers(9) == (1, 3, 5)
    spec, two = reference_model(return_hidden_states=ReturnHiddenStates.EAGLE3, num_layers=9, hidden_state_layers=(8,))
    np.testing.assert_allclose(two.execute(*step(spec, lengths))[1].to_numpy(), every, rtol=1e-6)


def test_layers_of_small_models_are_returned_once() -> None:
    assert [default_hidden_state_layers(n) for n in (1, 2, 4, 8, 32)] == [(0,), (0, 1), (0, 1), (1, 3, 4), (1, 15, 28)]


def test_session_runs_on_cpus() -> None:
    assert InferenceSession([CPU()], num_threads=2).num_threads == 2
    for devices in ([], [CPU(0), CPU(0)]):
        with pytest.raises(UnsupportedModelError, match="devices"):
            InferenceSession(devices)
    with pytest.raises(ValueError, match="num_threads"):
        InferenceSession(num_threads=0)
    with pytest.raises(ValueError, match="precision"):
        InferenceSession(precision="float64")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="executor"):
        InferenceSession(num_threads=1).load(Graph("x", []), {}, executor="gpu")  # type: ignore[arg-type]


def test_weights_are_checked_by_name() -> None:
    spec = tiny_spec(tie_word_embeddings=True)
    weights = tiny_weights(spec)
    graph = build_decoder_graph(spec, weights)
    session = InferenceSession(num_threads=1)

    def load(changes: dict[str, Any], drop: str | None = None) -> None:
        registry = {name: weight for name, weight in weights.items() if name != drop} | changes
        session.load(graph, registry, executor="reference")

    load({"rope_freqs.weight": np.ones(8, np.float32), "lm_head.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(WeightsError, match=r"lacks norm[.]weight"):
        load({}, drop="norm.weight")
    with pytest.raises(WeightsError, match=r"no use for stray[.]bias"):
        load({"stray.bias": np.ones(2, np.float32)})
    name = "layers.1.mlp.up_proj.weight"
    with pytest.raises(WeightsError, match=r"up_proj.*has shape \[96, 63\], the graph declares \[96, 64\]"):
        load({name: np.ones((96, 63), np.float32)})
    with pytest.raises(WeightsError, match="has dtype float16, the graph declares float32"):
        load({name: np.ones((96, 64), np.float16)})


def test_graph_names_what_a_checkpoint_lacks() -> None:
    spec = tiny_spec()
    weights = tiny_weights(spec)
    with pytest.raises(WeightsError, match=r"lm_head[.]weight"):
        build_decoder_graph(spec, {name: weight for name, weight in weights.items() if name != "lm_head.weight"})
    name = "layers.0.self_attn.k_proj.weight"
    wrong = WeightData.from_numpy(np.ones((16, 64), np.float32), name)
    with pytest.raises(WeightsError, match=r"k_proj.weight.*\[16, 64\].*\[32, 64\]"):
        build_decoder_graph(spec, weights | {name: wrong})
    narrow = weights[name].astype(DType.float8_e4m3fn)
    with pytest.raises(UnsupportedModelError, match=r"k_proj.weight.*float8_e4m3fn"):
        build_decoder_graph(spec, weights | {name: narrow})


def test_spec_refuses_what_does_not_fit() -> None:
    for changes, message in (
        ({"num_heads": 3}, "num_heads"),
        ({"norm_eps": -1.0}, "norm_eps"),
        ({"clip_qkv": 0.0}, "clip_qkv"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"logits_scaling": 0.0}, "logits_scaling"),
        ({"residual_multiplier": float("inf")}, "residual_multiplier"),
        ({"hidden_state_layers": (3,)}, "hidden_state_layers"),
        ({"norm_has_bias": True}, "norm_has_bias"),
        ({"norm_method": "group_norm"}, "norm_method"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_spec(**changes)
    devices = [DeviceRef.CPU(0), DeviceRef.CPU(1)]
    two = KVCacheParams(dtype=DType.float32, n_kv_heads=2, head_dim=16, num_layers=2, devices=devices)
    with pytest.raises(UnsupportedModelError, match=r"devices.*tensor parallelism"):
        tiny_spec(kv_params=two)
    other = KVCacheParams(dtype=DType.float32, n_kv_heads=2, head_dim=16, num_layers=3, devices=devices[:1])
    with pytest.raises(ValueError, match="num_layers"):
        tiny_spec(kv_params=other)


def test_metadata() -> None:
    _, model = reference_model(return_logits=ReturnLogits.VARIABLE)
    inputs = {meta.name: meta for meta in model.input_metadata}
    assert list(inputs)[:3] == ["tokens", "input_row_offsets", "return_n_logits"]
    assert inputs["input_row_offsets"] == TensorMetadata("input_row_offsets", DType.uint32, ("batch_size + 1",))
    assert [meta.name for meta in model.input_metadata if meta.is_optional] == ["request_lengths"]
    assert [meta.shape for meta in model.output_metadata] == [
        ("batch_size", 96),
        ("num_logit_rows", 96),
        ("batch_size + 1",),
    ]


def test_inputs_are_checked() -> None:
    spec, model = reference_model(return_logits=ReturnLogits.VARIABLE)
    good = step(spec, [3, 2])

    def refused(error: type[Exception], match: str, **changes: Any) -> None:
        names = [meta.name for meta in model.input_metadata]
        inputs = [changes.get(name, value) for name, value in zip(names, good, strict=False)]
        with pytest.raises(error, match=match):
            model.execute(*inputs)

    tokens = good[0]
    assert model(*map(Buffer.from_numpy, good))[0].shape == (2, 96)
    assert model(*good, np.array([3, 2], np.uint32))[0].shape == (2, 96)
    refused(DTypeError, "tokens", tokens=tokens.astype(np.int32))
    refused(ShapeError, "tokens", tokens=tokens[None])
    refused(ValueError, "tokens.*not contiguous", tokens=np.repeat(tokens, 2)[::2])
    refused(ValueError, r"tokens: ids must be within 0..95, got .*96", tokens=np.full(5, 96))
    refused(ValueError, "tokens: ids", tokens=np.full(5, -1))
    refused(TypeError, "tokens.*list", tokens=[1, 2])
    refused(ValueError, "input_row_offsets", input_row_offsets=np.array([0, 3, 4], np.uint32))
    refused(ValueError, "input_row_offsets", input_row_offsets=np.array([1, 3, 5], np.uint32))
    refused(ShapeError, "cache_lengths", cache_lengths=np.zeros(3, np.uint32))
    refused(ShapeError, "kv_blocks", kv_blocks=good[3][:, :, :1].copy())
    refused(ValueError, "lookup_table: request 0 needs", cache_lengths=np.array([20, 0], np.uint32))
    refused(ValueError, "lookup_table: request 0 names", lookup_table=np.full_like(good[5], 99))
    refused(InvalidRequestError, "return_n_logits.*3 rows.*shortest request has 2", return_n_logits=np.array([3]))
    refused(InvalidRequestError, "return_n_logits", return_n_logits=np.array([0]))
    locked = good[3].copy()
    locked.flags.writeable = False
    refused(ValueError, "kv_blocks.*read-only", kv_blocks=locked)
    with pytest.raises(TypeError, match="takes 7 to 8 inputs"):
        model.execute(*good[:6])


def test_reference_models_cannot_be_traced() -> None:
    _, model = reference_model()
    with pytest.raises(ValueError, match="no instructions"):
        model.is_tracing = True
    with pytest.raises(ValueError, match="no step was traced"):
        model.trace()


def test_plain_graphs_run_too() -> None:
    with Graph("double", [TensorType(DType.float32, ("rows", 8))]) as graph:
        graph.output(ops.add(graph.inputs[0], graph.inputs[0]))
    model = InferenceSession(num_threads=1).load(graph, executor="reference")
    x = np.ones((3, 8), np.float32)
    np.testing.assert_array_equal(model(x)[0].to_numpy(), 2 * x)


def test_trace_adds_up(tmp_path: Path) -> None:
    records = [
        {"op": "matmul", "name": "qkv", "layer": 0, "seconds": 0.5, "bytes": 2_000_000_000, "flops": 5_000_000_000},
        {"op": "norm", "name": "", "layer": 0, "seconds": 0.25, "bytes": 1_000_000_000, "flops": 1},
        {"op": "matmul", "name": "out", "layer": 0, "seconds": 0.25, "bytes": 1, "flops": 20_000_000_000},
        {"op": "copy_out", "name": "", "layer": -1, "seconds": 0.0, "bytes": 0, "flops": 0},
    ]
    trace = Trace.from_program(records, MachineLimits(read_gbps=8.0, f32_gflops=100.0, int8_gops=400.0))
    assert trace.seconds == 1.0
    assert [record.gbps for record in trace.records[:2]] == [4.0, 4.0]
    assert [record.share_of_limit for record in trace.records] == [0.5, 0.5, 0.8, 0.0]
    assert trace.by_op()["matmul"] == (2, 0.75, 2_000_000_001, 25_000_000_000)
    path = tmp_path / "trace.json"
    trace.save_chrome_trace(path)
    events = json.loads(path.read_text())["traceEvents"]
    assert [(e["name"], e["ph"], e["ts"], e["dur"]) for e in events[:3]] == [
        ("matmul qkv", "X", 0.0, 5e5),
        ("norm", "X", 5e5, 2.5e5),
        ("matmul out", "X", 7.5e5, 2.5e5),
    ]


def test_report_counts_memory() -> None:
    counts = {"num_weights": 1, "source_bytes": 2, "packed_bytes": 3, "num_instructions": 5, "pack_s": 0, "lower_s": 0}
    report = LoadReport(token_bytes=10, request_bytes=4, logit_row_bytes=1, **counts)
    assert report.activation_bytes(17, 1, 0) == 32 * 10 + 16 * 4
    spec = tiny_spec()
    weights = tiny_weights(spec)
    executor = NativeExecutor(
        FakeNative(),  # type: ignore[arg-type]
        build_decoder_graph(spec, weights),
        weights,
        precision="auto",
        variant="scalar",
        threads=1,
    )
    assert executor.report.source_bytes == executor.report.packed_bytes == sum(w.nbytes for w in weights.values())
    assert executor.report.request_bytes == 4 * (64 + 96 + 192)


@pytest.mark.parametrize("kind", ["float_input", "lone_rope", "wrong_rows", "unread_keys", "nested"])
def test_what_has_no_instruction_is_refused_by_name(kind: str) -> None:
    offsets, tokens = TensorType(DType.uint32, (BATCH_SIZE + 1,)), TensorType(DType.int64, (TOTAL_SEQ_LEN,))
    types = [tokens, offsets, TensorType(DType.float32, (TOTAL_SEQ_LEN, 64)), TensorType(DType.int64, ("rows",))]
    weight = Weight("embed", DType.float32, (96, 64))
    with Graph("odd", types, input_names=["tokens", "input_row_offsets", "x", "other"]) as graph:
        h = ops.embedding(graph.inputs[0], weight)
        if kind == "float_input":
            graph.output(ops.add(h, graph.inputs[2]))
        elif kind == "lone_rope":
            graph.output(ops.rope(h, h, num_heads=1, head_dim=64, rot_dim=64, interleaved=False))
        elif kind == "wrong_rows":
            graph.output(ops.embedding(graph.inputs[3], weight))
        elif kind == "unread_keys":
            graph.output(graph.inputs[0])
        else:
            with Graph("inner", [h.type]) as inner:
                inner.output(inner.inputs[0])
            with Graph("middle", [h.type]) as middle:
                middle.output(*middle.call(inner, middle.inputs[0]))
            graph.output(*graph.call(middle, h))
    weights = {"embed": WeightData.from_numpy(np.ones((96, 64), np.float32), "embed")}
    with pytest.raises(UnsupportedModelError, match="in graph"):
        NativeExecutor(FakeNative(), graph, weights, precision="auto", variant="scalar", threads=1)  # type: ignore[arg-type]
