"""GGUF files: against the format's own writer, and against files that break the format."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.dtype import DType
from puna.errors import UnsupportedModelError, WeightsError
from puna.graph.quantization import QuantizationEncoding
from puna.graph.weights import GGUFWeights, StringList
from support import weight_bytes as wb

Write = Callable[[bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(raw: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(raw)
        return path

    return put


def save(path: Path, tensors: dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType]], **metadata: Any) -> GGUFWeights:
    """Writes a file through the format's own package and opens it."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            getattr(writer, f"add_{type(value).__name__.replace('str', 'string').replace('int', 'int32')}")(key, value)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFWeights(path)


# -- tensors ----------------------------------------------------------------------------------------------------------

PLAIN = {
    "F32": DType.float32,
    "F16": DType.float16,
    "BF16": DType.bfloat16,
    "F64": DType.float64,
    "I8": DType.int8,
    "I16": DType.int16,
    "I32": DType.int32,
    "I64": DType.int64,
}
BLOCKS = [encoding for encoding in QuantizationEncoding if encoding.is_gguf]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_types(name: str, tmp_path: Path) -> None:
    dtype = PLAIN[name]
    values = np.arange(-12, 12).reshape(2, 3, 4).astype(dtype.to_numpy())
    stored = values.view(np.uint8) if name == "BF16" else values  # the package keeps BF16 as bytes
    weights = save(tmp_path / "a.gguf", {"x.weight": (stored, gguf.GGMLQuantizationType[name])})
    weight = weights.x.weight.data()
    assert (weight.dtype, weight.shape, weight.quantization_encoding, weight.format) == (dtype, (2, 3, 4), None, name)
    assert weight.data.dtype == values.dtype and np.array_equal(weight.data, values)
    assert not weight.data.flags.writeable


@pytest.mark.parametrize("encoding", BLOCKS)
def test_block_types(encoding: QuantizationEncoding, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 256, (2, 3, 2 * encoding.block_size), np.uint8)
    weights = save(tmp_path / "a.gguf", {"x": (rows, gguf.GGMLQuantizationType[encoding.value])})
    weight = weights.x.data()
    assert (weight.dtype, weight.shape) == (DType.uint8, (2, 3, 2 * encoding.elements_per_block))
    assert weight.quantization_encoding is encoding and weight.format == encoding.value
    assert np.array_equal(weight.data, rows)
    assert weight.nbytes == rows.nbytes


def test_order_is_the_files_and_types_mix(tmp_path: Path) -> None:
    kinds = gguf.GGMLQuantizationType
    weights = save(
        tmp_path / "a.gguf",
        {
            "output.weight": (np.zeros((2, 210), np.uint8), kinds.Q6_K),
            "blk.0.attn_q.weight": (np.zeros((2, 144), np.uint8), kinds.Q4_K),
            "blk.0.attn_norm.weight": (np.ones(256, np.float32), kinds.F32),
        },
    )
    names = ["output.weight", "blk.0.attn_q.weight", "blk.0.attn_norm.weight"]
    assert [name for name, _ in weights.items()] == names
    assert [place.data().format for _, place in weights.items()] == ["Q6_K", "Q4_K", "F32"]
    assert [name for name, _ in weights.blk[0].items()] == names[1:]
    assert weights.blk[0].attn_q.weight.quantization_encoding is QuantizationEncoding.Q4_K


def test_allocate(tmp_path: Path) -> None:
    weights = save(tmp_path / "a.gguf", {"x": (np.zeros((2, 144), np.uint8), gguf.GGMLQuantizationType.Q4_K)})
    weight = weights.x.allocate(DType.uint8, [2, 256], QuantizationEncoding.Q4_K)
    assert weight.quantization_encoding is QuantizationEncoding.Q4_K and tuple(weight.shape) == (2, 256)
    assert weights.allocated_weights["x"].shape == (2, 256)
    with pytest.raises(ValueError, match="has encoding Q4_K, Q6_K is expected"):
        weights.x.allocate(quantization_encoding=QuantizationEncoding.Q6_K)


def test_a_scalar_and_no_tensors(write: Write) -> None:
    weights = GGUFWeights(write(wb.gguf([], [wb.tensor("x", ())], struct.pack("<f", 2.5))))
    assert weights.x.data().data.item() == 2.5
    assert list(GGUFWeights(write(wb.gguf([wb.u32("a", 1)]))).items()) == []


def test_the_last_tensor_needs_no_padding_and_holes_are_padding(write: Write) -> None:
    tensors = [wb.tensor("b", (3,), offset=64), wb.tensor("a", (1,), offset=0)]
    weights = GGUFWeights(write(wb.gguf([], tensors, struct.pack("<f", 1) + bytes(60) + struct.pack("<3f", 2, 3, 4))))
    assert weights.a.data().data.tolist() == [1]
    assert weights.b.data().data.tolist() == [2, 3, 4]


def test_version_2_and_other_alignments(write: Write) -> None:
    for alignment in (8, 64, 4096):
        pairs = [wb.u32("general.alignment", alignment)]
        raw = wb.gguf(pairs, [wb.tensor("x", (1,))], struct.pack("<f", 9), version=2, alignment=alignment)
        assert GGUFWeights(write(raw)).x.data().data.tolist() == [9]


# -- metadata ---------------------------------------------------------------------------------------------------------


def test_every_metadata_type(write: Write) -> None:
    numbers: dict[int, tuple[str, Any]] = {
        0: ("B", 250), 1: ("b", -5), 2: ("H", 65_000), 3: ("h", -300), 4: ("I", 2**32 - 1), 5: ("i", -(2**31)),
        6: ("f", 0.5), 10: ("Q", 2**64 - 1), 11: ("q", -(2**63)), 12: ("d", 1e300),
    }  # fmt: skip
    pairs, expected = [], {}
    for kind, (code, value) in numbers.items():
        pairs.append(wb.pair(f"n{kind}", kind, struct.pack(f"<{code}", value)))
        pairs.append(wb.list_of(f"l{kind}", kind, 2, struct.pack(f"<2{code}", value, value)))
        expected[f"n{kind}"] = value
        expected[f"l{kind}"] = [value, value]
    pairs += [wb.pair("yes", wb.BOOL, b"\1"), wb.pair("no", wb.BOOL, b"\0"), wb.pair("s", wb.STRING, wb.text("grün"))]
    pairs += [wb.list_of("bools", wb.BOOL, 3, b"\1\0\1"), wb.list_of("none", wb.F32, 0, b"")]
    nested = struct.pack("<IQ", 4, 2) + struct.pack("<2I", 1, 2) + struct.pack("<IQ", wb.STRING, 1) + wb.text("x")
    pairs += [wb.list_of("nested", wb.LIST, 2, nested), wb.list_of("texts", wb.STRING, 2, wb.text("") + wb.text("é"))]
    metadata = GGUFWeights(write(wb.gguf(pairs))).metadata
    for key, value in expected.items():
        found = metadata[key]
        assert found == value if not isinstance(value, list) else found.tolist() == value, key
    assert metadata["yes"] is True and metadata["no"] is False and metadata["s"] == "grün"
    assert metadata["bools"].tolist() == [True, False, True] and metadata["none"].size == 0
    assert metadata["nested"][0].tolist() == [1, 2] and list(metadata["nested"][1]) == ["x"]
    assert list(metadata["texts"]) == ["", "é"]
    assert not metadata["l6"].flags.writeable and metadata["l4"].dtype == np.uint32


def test_metadata_of_the_official_writer(tmp_path: Path) -> None:
    tokens = ["<s>", "", "naïve", "a\0b", "\0", "日本"]
    given_metadata = {"k.int": -3, "k.bool": True, "k.str": "x" * 70_000, "k.ints": [1, 2, 3], "k.tokens": tokens}
    metadata = save(tmp_path / "a.gguf", {}, **given_metadata).metadata
    assert metadata["general.architecture"] == "llama"
    assert {key: metadata[key] for key in ("k.int", "k.bool", "k.str")} == {
        key: given_metadata[key] for key in ("k.int", "k.bool", "k.str")
    }
    assert metadata["k.ints"].tolist() == [1, 2, 3]
    assert list(metadata["k.tokens"]) == tokens


@given(st.lists(st.text(max_size=6) | st.sampled_from(["", "\0", "\0" * 8, "é"]), max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_string_lists(write: Write, texts: list[str]) -> None:
    raw = wb.gguf([wb.list_of("t", wb.STRING, len(texts), b"".join(map(wb.text, texts))), wb.u32("after", 7)])
    metadata = GGUFWeights(write(raw)).metadata
    found = metadata["t"]
    assert isinstance(found, StringList) and len(found) == len(texts)
    assert found.tolist() == list(found) == texts == found[:]
    assert [found[i] for i in range(-len(texts), len(texts))] == texts + texts
    assert found[1::2] == texts[1::2] and ("é" in found) == ("é" in texts)
    assert metadata["after"] == 7
    with pytest.raises(IndexError, match="strings, number"):
        found[len(texts)]


@pytest.mark.parametrize("seed", range(3))
def test_long_string_lists(seed: int, write: Write) -> None:
    rng = np.random.default_rng(seed)
    usual = [f"{'é' * int(length)}{i}" for i, length in enumerate(rng.integers(0, 12, 6000))]
    odd = ["", "\0", "x" * 255, "x" * 256, "y" * 70_000, "\0" * 9, "a\0\0\0\0\0\0\0b", "\1\0\0\0\0\0\0\0"]
    texts = [odd[int(rng.integers(len(odd)))] if rng.random() < 0.001 * seed else text for text in usual]
    raw = wb.gguf([wb.list_of("t", wb.STRING, len(texts), b"".join(map(wb.text, texts))), wb.u32("after", 7)])
    metadata = GGUFWeights(write(raw)).metadata
    assert metadata["t"].tolist() == texts and metadata["after"] == 7
    assert [metadata["t"][i] for i in range(len(texts))] == texts
    for cut in rng.integers(100, len(raw) - 20, 20):
        with pytest.raises(WeightsError, match=r"ends in or after string|list is said to have"):
            GGUFWeights(write(raw[: int(cut)]))


def test_a_string_that_is_not_utf8_is_named_when_it_is_decoded(write: Write) -> None:
    raw = wb.gguf([wb.list_of("tokens", wb.STRING, 3, wb.text("a") + wb.text(b"\xff") + wb.text("c"))])
    tokens = GGUFWeights(write(raw)).metadata["tokens"]
    assert tokens[2] == "c"
    for read in (lambda: tokens[1], tokens.tolist):
        with pytest.raises(WeightsError, match=r"'tokens'.*string 1 is not UTF-8") as caught:
            read()
        assert caught.value.offset == raw.index(b"\xff")


# -- what is refused --------------------------------------------------------------------------------------------------

DATA = bytes(256)
X = wb.tensor("x")  # F32 [4, 8], 128 bytes
HUGE = 2**64 - 1

BROKEN: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "is empty"),
    "three bytes": (b"GGU", "not with b'GGUF'"),
    "other magic": (wb.gguf(magic=b"GGML"), "not with b'GGUF'"),
    "only the magic": (b"GGUF", "ends inside the version"),
    "no counts": (b"GGUF" + struct.pack("<I", 3), "ends inside the number of tensors"),
    "2^64-1 keys": (wb.gguf(num_pairs=HUGE), "18446744073709551615 metadata keys"),
    "more keys than bytes": (wb.gguf([wb.u32("a", 1)], num_pairs=9), "9 metadata keys"),
    "2^64-1 tensors": (wb.gguf(num_tensors=HUGE), "18446744073709551615 tensors"),
    "more tensors than bytes": (wb.gguf([], [X], num_tensors=4), "4 tensors; it has"),
    "key length 2^64-1": (wb.gguf([wb.text("k", HUGE) + bytes(8)]), "key is said to have 1844674407370955161"),
    "key past the end": (wb.gguf([wb.text("k", 100) + bytes(8)]), "a metadata key is said to have 100 bytes"),
    "key of 64 KiB": (wb.gguf([wb.pair("k" * 65_536, wb.BOOL, b"\1")]), "at most 65535"),
    "key that is not UTF-8": (wb.gguf([wb.pair(b"\xfe", wb.BOOL, b"\1")]), "a metadata key is not UTF-8"),
    "key twice": (wb.gguf([wb.u32("k", 1), wb.u32("k", 2)]), "'k'.*there twice"),
    "value type 13": (wb.gguf([wb.pair("k", 13, bytes(8))]), "'k'.*value type 13 is unknown"),
    "bool of 2": (wb.gguf([wb.pair("k", wb.BOOL, b"\2")]), "'k'.*0 or 1, not 2"),
    "bools of 3": (wb.gguf([wb.list_of("k", wb.BOOL, 2, b"\1\3")]), "'k'.*0 or 1, not 3"),
    "string length 2^63": (wb.gguf([wb.pair("k", wb.STRING, wb.text("v", 2**63))]), "is said to have 92233720"),
    "string that is not UTF-8": (wb.gguf([wb.pair("k", wb.STRING, wb.text(b"\x80"))]), "'k'.*the value is not UTF-8"),
    "list type 99": (wb.gguf([wb.list_of("k", 99, 1, bytes(16))]), "'k'.*list type 99 is unknown"),
    "list of 2^64-1": (wb.gguf([wb.list_of("k", wb.F32, HUGE, bytes(16))]), "'k'.*list is said to have"),
    "list whose bytes wrap": (wb.gguf([wb.list_of("k", wb.U64, 2**61 + 1, bytes(16))]), "'k'.*list is said to have"),
    "list of strings of 2^60": (wb.gguf([wb.list_of("k", wb.STRING, 2**60, bytes(99))]), "'k'.*list is said to have"),
    "string in a list past the end": (
        wb.gguf([wb.list_of("k", wb.STRING, 1, wb.text("v", 999))]),
        "ends in or after string 0 of the 1",
    ),
    "string in a list of 2^64-1": (
        wb.gguf([wb.list_of("k", wb.STRING, 2, wb.text("v", HUGE) + bytes(99))]),
        "ends in or after string 0 of the 2",
    ),
    "lists nested too deep": (
        wb.gguf([wb.list_of("k", wb.LIST, 1, struct.pack("<IQ", wb.LIST, 1) * 9 + bytes(12))]),
        "nested more than 4",
    ),
    "alignment 0": (wb.gguf([wb.u32("general.alignment", 0)], [X], DATA), "general.alignment.*0 is not an alignment"),
    "alignment 12": (wb.gguf([wb.u32("general.alignment", 12)], [X], DATA), "12 is not an alignment"),
    "alignment 2^31": (wb.gguf([wb.u32("general.alignment", 2**31)], [X], DATA), "2147483648 is not an alignment"),
    "alignment that is text": (
        wb.gguf([wb.pair("general.alignment", wb.STRING, wb.text("32"))], [X], DATA),
        "'32' is not an alignment",
    ),
    "alignment that is a bool": (wb.gguf([wb.pair("general.alignment", wb.BOOL, b"\1")], [X], DATA), "True is not"),
    "name length 2^64-1": (wb.gguf([], [wb.text("x", HUGE) + bytes(99)], DATA), "a tensor's name is said to have"),
    "name that is not UTF-8": (wb.gguf([], [wb.tensor(b"\xff")], DATA), "a tensor's name is not UTF-8"),
    "name twice": (wb.gguf([], [X, wb.tensor("x", offset=128)], DATA), "'x'.*there twice"),
    "five axes": (wb.gguf([], [wb.tensor("x", (1, 1, 1, 1, 8))], DATA), "'x'.*has 5 axes"),
    "2^32-1 axes": (wb.gguf([], [wb.tensor("x", (8,), rank=2**32 - 1)], DATA), "'x'.*has 4294967295 axes"),
    "axis of nothing": (wb.gguf([], [wb.tensor("x", (0, 8))], DATA), "'x'.*without elements"),
    "shape whose product wraps": (wb.gguf([], [wb.tensor("x", (2**32, 2**32, 2**32))], DATA), "'x'.*past the end"),
    "shape of 2^64-1": (wb.gguf([], [wb.tensor("x", (HUGE,))], DATA), "'x'.*past the end"),
    "row that is no multiple of a block": (
        wb.gguf([], [wb.tensor("x", (4, 33), wb.TYPE_Q4_0)], DATA),
        "'x'.*a row of Q4_0 is a multiple of 32",
    ),
    "row of half a K block": (wb.gguf([], [wb.tensor("x", (4, 128), wb.TYPE_Q4_K)], DATA), "multiple of 256"),
    "block without axes": (wb.gguf([], [wb.tensor("x", (), wb.TYPE_Q4_0)], DATA), "multiple of 32"),
    "offset off the alignment": (wb.gguf([], [wb.tensor("x", offset=16)], DATA), "'x'.*multiple of the alignment"),
    "offset past the end": (wb.gguf([], [wb.tensor("x", offset=160)], DATA), "'x'.*past the end of the file"),
    "offset of 2^64-32": (wb.gguf([], [wb.tensor("x", offset=2**64 - 32)], DATA), "'x'.*past the end"),
    "overlap": (wb.gguf([], [X, wb.tensor("y", offset=96)], DATA), "'y'.*overlaps 'x'"),
    "the same bytes twice": (wb.gguf([], [X, wb.tensor("y")], DATA), "'y'.*overlaps 'x'"),
    "cut in the data": (wb.gguf([], [X], DATA[:127]), "'x'.*past the end of the file"),
    "cut in the descriptions": (wb.gguf([], [X, X])[:80], "'x'.*the file ends inside the shape"),
    "part of a set under another name": (wb.gguf([wb.u32("split.count", 2)]), "is part 0 of 2"),
    "split number that is a list": (wb.gguf([wb.list_of("split.no", wb.U32, 2, bytes(8))]), "'split.no'.*whole number"),
    "count of a set that is text": (
        wb.gguf([wb.pair("split.tensors.count", wb.STRING, wb.text("1"))], [X], DATA),
        "a whole number is expected, not str",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(name: str, write: Write) -> None:
    raw, message = BROKEN[name]
    path = write(raw)
    with pytest.raises(WeightsError, match=message) as caught:
        GGUFWeights(path)
    assert caught.value.file == str(path) and str(path) in str(caught.value)


def test_every_prefix_of_a_file_is_refused(write: Write) -> None:
    pairs = [wb.u32("a", 1), wb.list_of("t", wb.STRING, 2, wb.text("x") + wb.text("y"))]
    pairs.append(wb.list_of("f", wb.F32, 1, bytes(4)))
    raw = wb.gguf(pairs, [wb.tensor("x", (1,))], bytes(4))
    assert GGUFWeights(write(raw)).x.data().data.tolist() == [0]
    for size in range(len(raw)):
        with pytest.raises(WeightsError):
            GGUFWeights(write(raw[:size]))


def test_error_names_key_and_byte(write: Write) -> None:
    raw = wb.gguf([wb.u32("first", 1), wb.pair("second", 77, bytes(4))])
    with pytest.raises(WeightsError) as caught:
        GGUFWeights(write(raw))
    assert caught.value.tensor == "second"
    assert caught.value.offset == raw.index(struct.pack("<I", 77))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "byte order = 'big-endian'.*little-endian"),
        (wb.gguf(version=1), "GGUF version = 1 .*supported: 2, 3"),
        (wb.gguf(version=4), "GGUF version = 4 .*supported: 2, 3"),
        (wb.gguf(version=0), "GGUF version = 0 .*supported: 2, 3"),
        (wb.gguf([], [wb.tensor("x", kind=9)], DATA), "type of tensor 'x' = 'Q8_1 .*supported: Q4_0"),
        (wb.gguf([], [wb.tensor("x", kind=4)], DATA), "type of tensor 'x' = 'Q4_2 .removed"),
        (wb.gguf([], [wb.tensor("x", kind=31)], DATA), "'Q4_0_4_4 .removed"),
        (wb.gguf([], [wb.tensor("x", kind=4_000_000_000)], DATA), "type of tensor 'x' = 4000000000"),
    ],
)
def test_other_kinds_are_refused_by_name(raw: bytes, message: str, write: Write) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        GGUFWeights(write(raw))
    assert "model.gguf" in str(caught.value)


def test_every_type_number_of_the_package_is_known() -> None:
    from puna.graph.weights import gguf as reader

    known = {**reader._DTYPES, **reader._ENCODINGS, **reader._REFUSED}
    for kind in gguf.GGMLQuantizationType:
        assert kind.value in known, kind
        stated = reader._ENCODINGS.get(kind.value)
        assert stated is None or stated.value == kind.name


# -- split sets -------------------------------------------------------------------------------------------------------


def split_set(directory: Path, count: int = 3, **replaced: int) -> Path:
    """Three files with a tensor each; `replaced` changes what part 2 says of itself."""
    for number in range(count):
        said = {"split.no": number, "split.count": count, "split.tensors.count": count}
        if number == 1:
            said |= {key.replace("_", "."): value for key, value in replaced.items()}
        pairs = [wb.u32("only.in.first", 5)] if number == 0 else []
        pairs += [wb.u32(key, value) for key, value in said.items()]
        raw = wb.gguf(pairs, [wb.tensor(f"blk.{number}.w", (1,))], struct.pack("<f", number))
        (directory / f"m-{number + 1:05d}-of-{count:05d}.gguf").write_bytes(raw)
    return directory / f"m-00001-of-{count:05d}.gguf"


def test_split_set(tmp_path: Path) -> None:
    weights = GGUFWeights(split_set(tmp_path))
    assert [place.data().data.item() for _, place in weights.items()] == [0, 1, 2]
    assert weights.metadata["only.in.first"] == 5
    assert GGUFWeights(split_set(tmp_path, 1)).blk[0].w.exists()


def test_broken_split_sets(tmp_path: Path) -> None:
    first = split_set(tmp_path)
    with pytest.raises(WeightsError, match=r"is part 2 of 3; name the first: m-00001-of-00003.gguf"):
        GGUFWeights(tmp_path / "m-00002-of-00003.gguf")
    for changed in ({"split_no": 2}, {"split_count": 4}):
        with pytest.raises(WeightsError, match=r"m-00002-of-00003.gguf.*its name says part 1 of 3"):
            GGUFWeights(split_set(tmp_path, **changed))
    split_set(tmp_path)
    second, third = tmp_path / "m-00002-of-00003.gguf", tmp_path / "m-00003-of-00003.gguf"
    pairs = [wb.u32("split.no", 2), wb.u32("split.count", 3)]
    third.write_bytes(wb.gguf(pairs, [wb.tensor("blk.1.w", (1,))], bytes(4)))
    with pytest.raises(WeightsError, match=r"'blk\.1\.w': is in .*m-00002-of-00003.gguf too"):
        GGUFWeights(first)
    third.write_bytes(wb.gguf(pairs))
    with pytest.raises(WeightsError, match="has 2 tensors, 3 are promised"):
        GGUFWeights(first)
    second.unlink()
    with pytest.raises(WeightsError, match=r"m-00002-of-00003.gguf: cannot be opened: No such file"):
        GGUFWeights(first)


# -- fuzzing ----------------------------------------------------------------------------------------------------------

SEED = wb.gguf(
    [
        wb.pair("general.architecture", wb.STRING, wb.text("llama")),
        wb.u32("general.alignment", 32),
        wb.list_of("tokens", wb.STRING, 3, wb.text("a") + wb.text("bc") + wb.text("")),
        wb.list_of("scores", wb.F32, 3, bytes(12)),
        wb.list_of("nested", wb.LIST, 1, struct.pack("<IQ", wb.BOOL, 1) + b"\1"),
    ],
    [wb.tensor("a", (4, 8)), wb.tensor("b", (2, 32), wb.TYPE_F16, 128)],
    DATA,
)
FUZZ = settings(max_examples=300, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_everything(path: Path) -> None:
    """Reads a file as far as it goes; anything but our two errors fails the test."""
    try:
        weights = GGUFWeights(path)
        for value in weights.metadata.values():
            assert not isinstance(value, StringList) or len(value.tolist()) == len(value)
    except (WeightsError, UnsupportedModelError):
        return
    for _, place in weights.items():
        assert place.data().data.nbytes == place.data().nbytes


@FUZZ
@given(st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutated_bytes(write: Write, changes: list[tuple[int, int]]) -> None:
    raw = bytearray(SEED)
    for position, value in changes:
        raw[position] = value
    read_everything(write(bytes(raw)))


INTERESTING = st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**61, 2**63 - 1, 2**63, HUGE - 31, HUGE])


@FUZZ
@given(st.integers(0, len(SEED) - 8), INTERESTING)
def test_extreme_numbers_anywhere(write: Write, position: int, value: int) -> None:
    raw = bytearray(SEED)
    raw[position : position + 8] = struct.pack("<Q", value)
    read_everything(write(bytes(raw)))


@FUZZ
@given(st.integers(0, len(SEED)), st.integers(0, 40), st.binary(max_size=40))
def test_cut_and_spliced(write: Write, position: int, removed: int, inserted: bytes) -> None:
    read_everything(write(SEED[:position] + inserted + SEED[position + removed :]))
