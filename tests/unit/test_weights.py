"""Opening checkpoints (files, sets, directories) and what a weight can do."""

from __future__ import annotations

import gc
import json
import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from puna.dtype import DType
from puna.errors import ShapeError, WeightsError
from puna.graph.quantization import QuantizationEncoding
from puna.graph.weights import (
    GGUFWeights,
    SafetensorWeights,
    WeightData,
    WeightsFormat,
    find_weight_files,
    load_weights,
    weights_format,
)
from support import weight_bytes as wb

INDEX = "model.safetensors.index.json"


def shard(path: Path, name: str, value: int = 1) -> Path:
    """A safetensors file of one byte-sized tensor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(wb.safetensors({name: wb.entry("U8", [1], 0, 1)}, bytes([value])))
    return path


def index(directory: Path, weight_map: object, **others: object) -> Path:
    """A directory's index file."""
    directory.mkdir(exist_ok=True)
    (directory / INDEX).write_text(json.dumps({**others, "weight_map": weight_map}))
    return directory


# -- files ------------------------------------------------------------------------------------------------------------


def test_kinds_go_by_suffix(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(wb.gguf())
    a, b = shard(tmp_path / "a.safetensors", "x"), shard(tmp_path / "b.safetensors", "y")
    assert isinstance(load_weights(tmp_path / "m.gguf"), GGUFWeights)
    assert isinstance(load_weights([str(a), b]), SafetensorWeights)
    assert [name for name, _ in load_weights([b, a]).items()] == ["x", "y"]
    assert weights_format([a, b]) is WeightsFormat.safetensors
    assert weights_format("UPPER.GGUF") == "gguf"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no weight file is named"),
        (["a.gguf", "b.safetensors"], "two kinds.*a.gguf, b.safetensors"),
        (["a.gguf", "b.gguf"], "one GGUF file is expected.*2 are named: a.gguf, b.gguf"),
        (["a.npz"], "'.npz' is no kind of weight file"),
        (["none.safetensors"], "none.safetensors: cannot be opened"),
        (["none.gguf"], "none.gguf: cannot be opened"),
    ],
)
def test_bad_choices_of_files(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(names)
    assert isinstance(caught.value, WeightsError)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.PTH", "model.ckpt", "model.pkl"])
def test_pickles_are_refused_by_name_unopened(name: str, tmp_path: Path) -> None:
    path = tmp_path / name  # not even there: the name is enough
    for read in (load_weights, SafetensorWeights, GGUFWeights):
        with pytest.raises(WeightsError, match="pickles, which can run code") as caught:
            read(path)
        assert name in str(caught.value)


# -- directories ------------------------------------------------------------------------------------------------------


def test_directory_with_an_index(tmp_path: Path) -> None:
    shard(tmp_path / "model-00001-of-00002.safetensors", "a", 1)
    shard(tmp_path / "sub" / "two.safetensors", "b", 2)
    shard(tmp_path / "model.safetensors", "other")
    files = {"b": "sub/two.safetensors", "a": "model-00001-of-00002.safetensors", "c": "sub/two.safetensors"}
    index(tmp_path, files, metadata={"total_size": 2, "x": [1.5e3, None, {"y": ["\u00e9"]}]})
    found = [path.relative_to(tmp_path).as_posix() for path in find_weight_files(tmp_path)]
    assert found == ["model-00001-of-00002.safetensors", "sub/two.safetensors"]
    with pytest.raises(WeightsError, match=r"'c'.*the index promises it in sub/two\.safetensors"):
        load_weights(tmp_path)
    index(tmp_path, {"a": files["a"], "b": files["b"]})
    weights = load_weights(tmp_path)
    assert [place.data().data.item() for _, place in weights.items()] == [1, 2]
    assert isinstance(load_weights(tmp_path / INDEX), SafetensorWeights)


def test_directories_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has no \.safetensors or \.gguf file"):
        find_weight_files(tmp_path)
    with pytest.raises(WeightsError, match="cannot be listed"):
        find_weight_files(tmp_path / "none")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"only pickles .pytorch_model\.bin."):
        load_weights(tmp_path)
    for part in (1, 2):
        pairs = [wb.u32("split.no", part - 1), wb.u32("split.count", 2)]
        (tmp_path / f"m-{part:05d}-of-00002.gguf").write_bytes(wb.gguf(pairs))
    assert [path.name for path in find_weight_files(tmp_path)] == ["m-00001-of-00002.gguf"]
    assert isinstance(load_weights(tmp_path), GGUFWeights)
    (tmp_path / "n.gguf").write_bytes(wb.gguf())
    with pytest.raises(WeightsError, match=r"several checkpoints, name one: m-00001-of-00002\.gguf, n\.gguf"):
        find_weight_files(tmp_path)
    shard(tmp_path / "x.safetensors", "x")
    assert [path.name for path in find_weight_files(tmp_path)] == ["x.safetensors"]
    shard(tmp_path / "y.safetensors", "y")
    with pytest.raises(WeightsError, match=r"name one: x\.safetensors, y\.safetensors"):
        find_weight_files(tmp_path)
    shard(tmp_path / "model.safetensors", "z")
    assert [path.name for path in find_weight_files(tmp_path)] == ["model.safetensors"]


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "sub/../../secret.safetensors", "/etc/passwd", "..", ".", "", "a\0b", "a\\..\\x"],
)
def test_index_that_leaves_the_directory(name: str, tmp_path: Path) -> None:
    shard(tmp_path / "secret.safetensors", "x")
    (tmp_path / "model" / "sub").mkdir(parents=True)
    directory = index(tmp_path / "model", {"tensor.name": name})
    with pytest.raises(WeightsError, match=r"'tensor\.name'.*is not a file name inside the directory") as caught:
        load_weights(directory)
    assert str(directory / INDEX) in str(caught.value) and caught.value.offset is not None


@pytest.mark.parametrize("linked", ["model.safetensors", "linked/model.safetensors"])
def test_links_that_leave_the_directory(linked: str, tmp_path: Path) -> None:
    shard(tmp_path / "outside" / "model.safetensors", "x")
    directory = index(tmp_path / "model", {"x": linked})
    if linked.startswith("linked/"):
        (directory / "linked").symlink_to(tmp_path / "outside")
    else:
        (directory / linked).symlink_to(tmp_path / "outside" / "model.safetensors")
    with pytest.raises(WeightsError, match="leads out of the directory"):
        load_weights(directory)
    (directory / INDEX).unlink()
    if linked == "model.safetensors":
        with pytest.raises(WeightsError, match="leads out of the directory"):
            load_weights(directory)


def test_links_inside_the_directory_and_loops(tmp_path: Path) -> None:
    shard(tmp_path / "real.safetensors", "x")
    (tmp_path / "link.safetensors").symlink_to("real.safetensors")
    index(tmp_path, {"x": "link.safetensors"})
    assert load_weights(tmp_path)["x"].exists()
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    index(tmp_path, {"x": "loop.safetensors"})
    with pytest.raises(WeightsError, match=r"'loop\.safetensors' is missing"):
        load_weights(tmp_path)


def test_the_hubs_cache_layout(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    for name in ("one", "two"):
        shard(repository / "blobs" / f"hash-{name}", name)
        (snapshot / f"{name}.safetensors").symlink_to(Path("../../blobs") / f"hash-{name}")
    index(snapshot, {"one": "one.safetensors", "two": "two.safetensors"})
    assert [name for name, _ in load_weights(snapshot).items()] == ["one", "two"]
    # The blobs of another repository are outside.
    other = tmp_path / "models--org--other" / "blobs" / "hash"
    shard(other, "two")
    (snapshot / "two.safetensors").unlink()
    (snapshot / "two.safetensors").symlink_to(other)
    with pytest.raises(WeightsError, match="leads out of the directory"):
        load_weights(snapshot)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("[]", "'{' is expected"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map that names a file"),
        ('{"weight_map": []}', "'{' is expected"),
        ('{"weight_map": {"a": 1}}', "'\"' is expected"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "'x' is missing"),
        ('{"weight_map": {"a": "here.safetensors", "a": "y"}}', "'a' is there twice"),
        ('{"weight_map": {"a": "none.safetensors"}}', r"'none\.safetensors' is missing"),
        ('{"metadata": ' + "[" * 100_000, "nested more than 32 deep"),
        ('{"metadata": nul, "weight_map": {}}', "a value is expected"),
        ('{"weight_map": {"a": "here.safetensors"}} x', "goes on after its end"),
        ('{"weight_map": {"a": "\\udcff.safetensors"}}', "not UTF-8"),
        ('{"weight_map": {"a": "' + "n" * 300 + '"}}', "is missing"),
        ('{"weight_map": {"a": "here.bin"}}', "pickles, which can run code"),
    ],
)
def test_broken_indexes(text: str, message: str, tmp_path: Path) -> None:
    shard(tmp_path / "here.safetensors", "a")
    (tmp_path / "here.bin").write_bytes(b"x")
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(WeightsError, match=message):
        load_weights(tmp_path)


def test_shard_with_a_tensor_of_another(tmp_path: Path) -> None:
    shard(tmp_path / "one.safetensors", "x")
    shard(tmp_path / "two.safetensors", "x")
    index(tmp_path, {"x": "one.safetensors", "y": "two.safetensors"})
    with pytest.raises(WeightsError, match=r"two\.safetensors, 'x'.*is in .*one\.safetensors too"):
        load_weights(tmp_path)


# -- WeightData -------------------------------------------------------------------------------------------------------


def test_from_numpy_and_back() -> None:
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    weight = WeightData.from_numpy(array, "w")
    assert (weight.name, weight.dtype, weight.shape, weight.format) == ("w", DType.float16, (2, 3), "F16")
    assert np.shares_memory(weight.data, array) and np.shares_memory(weight.to_buffer().to_numpy(), array)
    assert weight.to_float32().dtype == np.float32 and weight.to_float32().tolist() == array.tolist()
    assert repr(weight) == "WeightData('w', F16, [2, 3])"
    weight.check()


def test_astype_converts() -> None:
    weight = WeightData.from_numpy(np.array([1.0, 1.00390625, 3e38, -0.0], np.float32), "w")
    assert weight.astype(DType.float32) is weight
    half = weight.astype(DType.bfloat16)
    assert half.dtype is DType.bfloat16 and half.quantization_encoding is None and half.shape == (4,)
    assert half.data.astype(np.float32)[:2].tolist() == [1.0, 1.0]  # ties to even
    assert np.isinf(weight.astype(DType.float16).data[2].astype(np.float32))
    assert np.signbit(half.data[3].astype(np.float32))
    back = half.astype(DType.float32)
    assert back.data.dtype == np.float32


@pytest.mark.parametrize("dtype", DType)
def test_every_type_has_a_format_name(dtype: DType) -> None:
    weight = WeightData.from_numpy(np.ones(2, np.float32).astype(dtype.to_numpy()), "w")
    assert weight.format.isupper()
    assert weight.to_float32().tolist() == [1.0, 1.0]


def test_blocks() -> None:
    rows = np.zeros((3, 4, 36), np.uint8)
    weight = WeightData.from_blocks(rows, "w", QuantizationEncoding.Q4_0)
    assert (weight.dtype, weight.shape, weight.format) == (DType.uint8, (3, 4, 64), "Q4_0")
    assert weight.astype(DType.uint8) is weight
    with pytest.raises(ShapeError, match="rows of"):
        WeightData.from_blocks(rows[..., :35], "w", QuantizationEncoding.Q4_0)
    with pytest.raises(ShapeError):
        WeightData.from_blocks(rows.astype(np.int8), "w", QuantizationEncoding.Q4_0)
    with pytest.raises(ValueError, match="GPTQ has no blocks"):
        WeightData.from_blocks(rows, "w", QuantizationEncoding.GPTQ)


def test_rows_and_concat() -> None:
    rows = np.arange(4 * 18, dtype=np.uint8).reshape(4, 18)
    weight = WeightData.from_blocks(rows, "qkv", QuantizationEncoding.Q4_0)
    first, second = weight.rows(0, 1, "q"), weight.rows(1, 4)
    assert (first.name, first.shape, first.quantization_encoding) == ("q", (1, 32), QuantizationEncoding.Q4_0)
    assert (second.name, second.shape) == ("qkv", (3, 32)) and np.shares_memory(second.data, rows)
    whole = WeightData.concat([first, second], "again")
    assert (whole.name, whole.shape, whole.format) == ("again", (4, 32), "Q4_0")
    assert np.array_equal(whole.data, rows)
    for begin, end in ((0, 5), (-1, 2), (3, 2)):
        with pytest.raises(ShapeError, match="'qkv'"):
            weight.rows(begin, end)
    with pytest.raises(ShapeError):
        WeightData.from_blocks(rows[0], "flat", QuantizationEncoding.Q4_0).rows(0, 1)
    with pytest.raises(ValueError, match="'x' is F32, 'qkv' is Q4_0"):
        WeightData.concat([weight, WeightData.from_numpy(np.zeros((1, 32), np.float32), "x")], "y")
    with pytest.raises(ShapeError):
        wider = WeightData.from_blocks(np.zeros((1, 36), np.uint8), "x", QuantizationEncoding.Q4_0)
        WeightData.concat([weight, wider], "y")
    with pytest.raises(ValueError, match="nothing to concatenate"):
        WeightData.concat([], "y")


def test_a_view_outlives_the_tree_and_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    values = np.arange(5, dtype=ml_dtypes.bfloat16)
    path.write_bytes(wb.safetensors({"x": wb.entry("BF16", [5], 0, 10)}, values.tobytes()))
    data = load_weights(path)["x"].data().data
    shutil.rmtree(tmp_path)
    assert data.astype(np.float32).tolist() == [0, 1, 2, 3, 4]


def test_a_file_that_changes_is_noticed_within_its_last_page(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    raw = wb.safetensors({"x": wb.entry("F32", [8], 0, 32)}, np.ones(8, "<f4").tobytes())
    for change in (lambda: os.truncate(path, len(raw) - 4), lambda: path.write_bytes(raw[:-4] + b"abcd")):
        path.write_bytes(raw)
        os.utime(path, ns=(0, 0))
        weight = load_weights(path)["x"].data()
        assert weight.to_float32().sum() == 8
        change()
        with pytest.raises(WeightsError, match=r"'x'.*cut or changed while it was being read"):
            weight.to_float32()


def test_files_are_closed(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.safetensors", "x")
    gc.collect()  # what other tests left behind closes now
    before = len(list(Path("/proc/self/fd").iterdir()))
    weights = [load_weights(path) for _ in range(5)]
    assert len(list(Path("/proc/self/fd").iterdir())) > before
    del weights
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
