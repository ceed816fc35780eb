"""Safetensors files: against the official writer, and against files that break the format."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.dtype import DType
from puna.errors import MissingWeightError, UnsupportedModelError, WeightsError
from puna.graph.quantization import QuantizationEncoding
from puna.graph.weights import SafetensorWeights
from support.weight_bytes import entry
from support.weight_bytes import safetensors as build

Write = Callable[[bytes], Path]

WRITABLE = [
    DType.bool, DType.uint8, DType.int8, DType.uint16, DType.int16, DType.uint32, DType.int32, DType.uint64,
    DType.int64, DType.float16, DType.bfloat16, DType.float32, DType.float64, DType.float8_e4m3fn, DType.float8_e5m2,
    DType.float8_e8m0fnu,
]  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(raw: bytes) -> Path:
        path = tmp_path / "model.safetensors"
        path.write_bytes(raw)
        return path

    return put


# -- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", WRITABLE)
def test_every_dtype_of_the_official_writer(dtype: DType, tmp_path: Path) -> None:
    values = np.arange(24).astype(np.float32).reshape(2, 3, 4).astype(dtype.to_numpy())
    arrays = {"x": values, "empty": values[:0], "scalar": np.asarray(values[0, 0, 1])}
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    weights = SafetensorWeights(tmp_path / "a.safetensors")
    x = weights.x.data()
    assert (x.name, x.dtype, x.shape, x.quantization_encoding) == ("x", dtype, (2, 3, 4), None)
    assert x.data.dtype == values.dtype and x.data.tobytes() == values.tobytes()
    assert weights.empty.data().shape == (0, 3, 4)
    assert weights.scalar.data().data.tobytes() == values[0, 0, 1].tobytes()


def test_data_is_a_read_only_view_of_the_file(tmp_path: Path) -> None:
    values = np.arange(8, dtype=np.float32)
    safetensors.numpy.save_file({"x": values}, tmp_path / "a.safetensors")
    weight = SafetensorWeights(tmp_path / "a.safetensors").x.data()
    assert weight.source is not None and weight.source.path == tmp_path / "a.safetensors"
    assert np.shares_memory(weight.data, weight.source.array)
    assert not weight.data.flags.writeable
    assert np.array_equal(weight.to_buffer().to_numpy(), values)


def test_metadata_spacing_and_member_order(write: Write) -> None:
    header = b'{ "b" :\n{"shape": [2 , 1], "data_offsets" : [4,12],"dtype":"F32"}, "__metadata__": {"format": "pt", '
    header += b'"e":"\\u00e9\\n"}, "\\u0061\\"" : {"dtype":"I32","shape":[],"data_offsets":[0,4]} }   '
    weights = SafetensorWeights(write(build(header, np.array([7, 0, 0x3F800000], "<i4").tobytes())))
    assert weights.metadata == {"format": "pt", "e": "é\n"}
    assert [name for name, _ in weights.items()] == ['a"', "b"]
    assert weights['a"'].data().data.item() == 7
    assert weights.b.data().data.tolist() == [[0.0], [1.0]]


def test_misaligned_data_is_copied_into_place(write: Write) -> None:
    raw = build({"a": entry("U8", [1], 0, 1), "b": entry("F32", [2], 1, 9)}, b"\7" + np.array([1, 2], "<f4").tobytes())
    b = SafetensorWeights(write(raw)).b.data()
    assert b.data.tolist() == [1, 2] and b.data.flags.aligned
    assert b.to_float32().tolist() == [1, 2]


def test_no_tensors(write: Write) -> None:
    assert list(SafetensorWeights(write(build({}))).items()) == []
    assert list(SafetensorWeights(write(build({"__metadata__": {}}))).items()) == []


# -- the tree of names ------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> SafetensorWeights:
    arrays = {f"model.layers.{i}.mlp.up.weight": np.full((2, 3), i, np.float32) for i in (0, 1, 10)}
    arrays |= {"model.norm.weight": np.ones(3, np.float16), "lm_head.weight": np.ones((4, 3), np.float32)}
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    return SafetensorWeights(tmp_path / "a.safetensors")


def test_prefixes(tree: SafetensorWeights) -> None:
    assert tree.name == ""
    assert tree.model.layers[1].mlp.name == "model.layers.1.mlp"
    assert tree.model.layers[10].mlp.up.weight.data().data[0, 0] == 10
    assert [name for name, _ in tree.model.layers[1].items()] == ["model.layers.1.mlp.up.weight"]
    assert [name for name, _ in tree.items()] == sorted(name for name, _ in tree.items())
    assert len(list(tree.model.items())) == 4
    assert all(place.exists() and place.name == name for name, place in tree.items())
    assert tree["model.norm.weight"].exists() and not tree.model.norm.exists()
    assert not hasattr(tree, "__array_interface__")
    assert repr(tree.model) == "SafetensorWeights('model', 4 tensors)"


def test_unknown_name_hints_at_the_closest(tree: SafetensorWeights) -> None:
    with pytest.raises(KeyError, match=r"the closest name is 'model\.norm\.weight'") as caught:
        tree.model.nrm.weight.data()
    assert isinstance(caught.value, MissingWeightError)
    assert caught.value.tensor == "model.nrm.weight" and caught.value.file is not None


def test_allocate(tree: SafetensorWeights) -> None:
    weight = tree.model.norm.weight.allocate(DType.float16, [3])
    assert (weight.name, weight.dtype, tuple(weight.shape)) == ("model.norm.weight", DType.float16, (3,))
    assert weight.quantization_encoding is None
    tree.lm_head.weight.allocate()
    assert set(tree.allocated_weights) == {"model.norm.weight", "lm_head.weight"}
    assert tree.model.allocated_weights["lm_head.weight"].shape == (4, 3)
    for arguments in ({"dtype": DType.float32}, {"shape": (4,)}, {"quantization_encoding": QuantizationEncoding.Q4_0}):
        with pytest.raises(ValueError, match="is expected") as caught:
            tree.model.norm.weight.allocate(**arguments)  # type: ignore[arg-type]
        assert "model.norm.weight" in str(caught.value)
    with pytest.raises(KeyError):
        tree.none.allocate()


# -- what is refused --------------------------------------------------------------------------------------------------

DATA = bytes(16)
ENTRY_A = b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
GOOD = {"a": entry("F32", [2], 0, 8), "b": entry("F32", [2, 1], 8, 16)}

BROKEN: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "is empty"),
    "seven bytes": (bytes(7), "too few for the header's length"),
    "header of 2^64-8 bytes, so that n + 8 wraps": (build(b"{}", length=2**64 - 8), "at most 100000000"),
    "header over 100 MB": (build(b"{}", length=100_000_001), "at most 100000000"),
    "header past the end": (build(b"{}", length=3), "the file has 2"),
    "header of nothing": (build(b""), "does not begin with '{'"),
    "header that is a list": (build([]), "does not begin with '{'"),
    "header with white space first": (build(b" {}"), "does not begin with '{'"),
    "header that ends early": (build(b'{"a":{"dtype":"F32"'), "'}' is expected"),
    "text after the header": (build(b"{} x"), "goes on after its end"),
    "zero after the header": (build(b"{}\0"), "goes on after its end"),
    "nested too deep": (build(b'{"a":' * 50_000), "is unknown"),
    "nested lists": (build(b'{"a":{"shape":' + b"[" * 50_000), "a whole number is expected"),
    "list of millions": (build(b'{"a":{"shape":[' + b"0," * 500_000 + b"0]}}"), "more than 32 numbers"),
    "name twice": (build(b"{" + b",".join([ENTRY_A] * 2) + b"}", b"x"), "there twice"),
    "field twice": (build(b'{"a":{"dtype":"U8","dtype":"U8"}}'), "'dtype' is there twice"),
    "metadata twice": (build(b'{"__metadata__":{"a":"b"},"__metadata__":{}}'), "there twice"),
    "metadata that is a tensor": (build({"__metadata__": entry("U8", [1], 0, 1)}, b"x"), "holds no text"),
    "metadata with a number": (build({"__metadata__": {"a": 1}}), "'\"' is expected"),
    "fourth field": (build({"a": {**entry("U8", [1], 0, 1), "x": 1}}, b"x"), "more than 3 members"),
    "unknown field": (build({"a": {"dtype": "U8", "shape": [1], "offset": [0, 1]}}, b"x"), "'offset' is unknown"),
    "no dtype": (build({"a": {"shape": [1], "data_offsets": [0, 1]}}, b"x"), "dtype, shape and two data_offsets"),
    "one offset": (build({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}, b"x"), "two data_offsets"),
    "three offsets": (build({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 1]}}, b"x"), "more than 2"),
    "negative extent": (build({"a": entry("U8", [-1], 0, 1)}, b"x"), "a whole number is expected"),
    "fraction": (build({"a": {"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}}, b"x"), "a whole number"),
    "exponent": (build(b'{"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}}', b"x"), "a whole number"),
    "extent of thirty digits": (build({"a": entry("U8", [10**30], 0, 1)}, b"x"), "a whole number"),
    "leading zero": (build(b'{"a":{"dtype":"U8","shape":[01],"data_offsets":[0,1]}}', b"x"), "a whole number"),
    "a comma too much": (build(b'{"a":{"dtype":"U8","shape":[1,],"data_offsets":[0,1]}}', b"x"), "a whole number"),
    "thirty-three axes": (build({"a": entry("U8", [1] * 33, 0, 1)}, b"x"), "more than 32"),
    "shape whose product wraps": (build({"a": entry("F32", [2**62, 4, 2**62], 0, 16)}, DATA), "takes"),
    "offsets past the data": (build({"a": entry("F32", [4], 0, 16)}, DATA[:-1]), "not inside the 15 bytes"),
    "offsets backwards": (build({"a": entry("F32", [2], 8, 0)}, DATA), "not inside"),
    "offsets beyond 2^63": (build({"a": entry("F32", [2], 2**63, 2**63 + 8)}, DATA), "not inside"),
    "fewer bytes than the shape": (build({"a": entry("F32", [4], 0, 12)}, DATA[:12]), "takes 16 bytes"),
    "overlap": (build({"a": entry("F32", [3], 0, 12), "b": entry("F32", [2], 8, 16)}, DATA), "overlaps 'a'"),
    "the same bytes twice": (build({"a": entry("F32", [4], 0, 16), "b": entry("F32", [4], 0, 16)}, DATA), "overlaps"),
    "hole": (build({"a": entry("F32", [1], 0, 4), "b": entry("F32", [2], 8, 16)}, DATA), "leaves a hole after 'a'"),
    "hole at the begin": (build({"b": entry("F32", [2], 8, 16)}, DATA), "leaves a hole after the header"),
    "bytes after the end": (build(GOOD, DATA + b"PK"), "2 bytes after the last tensor"),
    "bytes of no tensor": (build({}, b"x"), "1 bytes after the last tensor"),
    "string without end": (build(b'{"a'), "not closed"),
    "control character": (build(b'{"a\nb":1}'), "not closed, or has a control character"),
    "wrong escape": (build(b'{"\\x41":1}'), "wrong escape"),
    "name that is not UTF-8": (build(b'{"\xff":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"), "not UTF-8"),
    "other name that is not UTF-8": (build(b'{"\xff": 1}'), "not UTF-8"),
    "half a surrogate pair": (build(b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"), "not UTF-8"),
    "name of a megabyte": (build(b'{"' + b"a" * 1_000_000 + b'":1}'), "more than 4096 bytes"),
    "truncated": (build(GOOD, DATA)[:-8], "not inside the 8 bytes"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(name: str, write: Write) -> None:
    raw, message = BROKEN[name]
    path = write(raw)
    with pytest.raises(WeightsError, match=message) as caught:
        SafetensorWeights(path)
    assert caught.value.file == str(path) and str(path) in str(caught.value)
    assert raw == b"" or caught.value.offset is not None


def test_error_names_tensor_and_byte(write: Write) -> None:
    raw = build({"first": entry("F32", [1], 0, 4), "second": entry("F32", [2], 4, 99)}, DATA)
    with pytest.raises(WeightsError, match="'second'") as caught:
        SafetensorWeights(write(raw))
    assert caught.value.tensor == "second"
    assert caught.value.offset is not None and raw[caught.value.offset :].startswith(b'"second"')


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "C64", "NEW"])
def test_other_dtypes_are_refused_by_name(dtype: str, write: Write) -> None:
    with pytest.raises(UnsupportedModelError, match=f"dtype of tensor 'a' = '{dtype}'.*model.safetensors") as caught:
        SafetensorWeights(write(build({"a": entry(dtype, [2], 0, 1)}, b"x")))
    assert "BF16" in str(caught.value)


def test_a_name_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.safetensors").write_bytes(build({"a": entry("U8", [1], 0, 1)}, b"x"))
    with pytest.raises(WeightsError, match=r"is in .*one\.safetensors too"):
        SafetensorWeights([tmp_path / "one.safetensors", tmp_path / "two.safetensors"])
    with pytest.raises(WeightsError, match="no safetensors file"):
        SafetensorWeights([])


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="No such file"):
        SafetensorWeights(tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="not a regular file"):
        SafetensorWeights(tmp_path)
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(WeightsError, match="not a regular file"):
        SafetensorWeights(tmp_path / "pipe.safetensors")


# -- fuzzing ----------------------------------------------------------------------------------------------------------

SEED_TENSORS = {f"layers.{i}.weight": entry("BF16", [2, 4], 16 * i, 16 * i + 16) for i in range(4)}
SEED = build({"__metadata__": {"format": "pt"}, **SEED_TENSORS}, bytes(64))
FUZZ = settings(max_examples=300, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_everything(path: Path) -> None:
    """Reads a file as far as it goes. Errors that are not ours fail the test; so does being laxer than the original."""
    try:
        weights = SafetensorWeights(path)
    except WeightsError:
        return
    except UnsupportedModelError as error:
        assert error.key.startswith("dtype of tensor")
        return
    official = dict(safetensors.deserialize(path.read_bytes()))
    assert set(official) == {name for name, _ in weights.items()}
    for name, place in weights.items():
        weight = place.data()
        weight.to_float32()
        assert (list(weight.shape), weight.data.tobytes()) == (official[name]["shape"], bytes(official[name]["data"]))


@FUZZ
@given(st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutated_bytes(write: Write, changes: list[tuple[int, int]]) -> None:
    raw = bytearray(SEED)
    for position, value in changes:
        raw[position] = value
    read_everything(write(bytes(raw)))


@FUZZ
@given(st.integers(0, len(SEED)), st.integers(0, 40), st.binary(max_size=40))
def test_cut_and_spliced(write: Write, position: int, removed: int, inserted: bytes) -> None:
    read_everything(write(SEED[:position] + inserted + SEED[position + removed :]))


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "U8", "BF16", "F4"]) | JSON,
        "shape": st.lists(st.integers(0, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2) | JSON,
    },
)


@FUZZ
@given(st.dictionaries(st.text(max_size=8), ENTRY | JSON, max_size=4), st.binary(max_size=40))
def test_any_json(write: Write, header: dict[str, Any], data: bytes) -> None:
    read_everything(write(build(header, data)))


@FUZZ
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(WRITABLE), st.lists(st.integers(0, 4), max_size=4)),
        max_size=6,
    )
)
def test_round_trip(write: Write, described: dict[str, tuple[DType, list[int]]]) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        name: np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.size_in_bytes), dtype.to_numpy()).reshape(shape)
        for name, (dtype, shape) in described.items()
        if dtype is not DType.bool
    }
    weights = SafetensorWeights(write(safetensors.numpy.save(arrays)))
    assert {name for name, _ in weights.items()} == set(arrays)
    for name, array in arrays.items():
        weight = weights[name].data()
        assert weight.data.dtype == array.dtype and weight.shape == array.shape
        assert weight.data.tobytes() == array.tobytes()


def test_float8_and_bfloat16_values(write: Write) -> None:
    values = np.array([0.5, -448.0, 0.0], ml_dtypes.float8_e4m3fn)
    weight = SafetensorWeights(write(safetensors.numpy.save({"x": values}))).x.data()
    assert weight.format == "F8_E4M3"
    assert weight.to_float32().tolist() == [0.5, -448.0, 0.0]
    assert weight.astype(DType.bfloat16).data.tolist() == [0.5, -448.0, 0.0]


def test_a_big_header_is_read_quickly_and_without_waste(write: Write) -> None:
    count = 20_000
    header = {f"model.layers.{i}.self_attn.q_proj.weight": entry("F32", [1], 4 * i, 4 * i + 4) for i in range(count)}
    weights = SafetensorWeights(write(build(header, np.arange(count, dtype="<f4").tobytes())))
    assert weights["model.layers.19999.self_attn.q_proj.weight"].data().data.item() == 19999
