"""The tokenizer's own rules: sources, tables, special tokens; small models equal whole ones."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as LibraryTokenizer

from puna.errors import InvalidRequestError, PunaError, UnsupportedModelError, WeightsError
from puna.tokenization import Tokenizer, load_tokenizer, load_tokenizer_async
from puna.tokenization.encoder import SHORT_TEXTS_BEFORE_WHOLE
from support.tiny_tokenizers import (
    CORPUS,
    byte_level_tokenizer_json,
    gguf_metadata,
    sentencepiece_metadata,
    small_sentencepiece,
)

TEXT = st.text(st.characters(codec="utf-8"), max_size=60) | st.text(
    st.sampled_from("ab 1 2\n\tÄé你'sS<|im_start|>▁👩🏽aa"), max_size=40
)


def write_directory(path: Path, **files: Any) -> Path:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / f"{name.replace('__', '.')}").write_text(text, "utf-8")
    return path


@pytest.fixture(scope="module")
def library() -> LibraryTokenizer:
    return LibraryTokenizer.from_str(byte_level_tokenizer_json())


@pytest.fixture(scope="module")
def from_gguf() -> Tokenizer:
    return load_tokenizer(gguf_metadata(byte_level_tokenizer_json(), "smollm", eos_token_id=2))


# --- byte-level


@pytest.mark.parametrize("text", CORPUS)
def test_gguf_and_json_give_the_librarys_ids(text: str, library: LibraryTokenizer, tmp_path: Path) -> None:
    write_directory(tmp_path, tokenizer__json=byte_level_tokenizer_json())
    expected = library.encode(text, add_special_tokens=False).ids
    for tokenizer in (
        load_tokenizer(gguf_metadata(byte_level_tokenizer_json(), "smollm")),
        load_tokenizer(tmp_path),
    ):
        assert tokenizer.encode(text, add_special_tokens=False) == expected
        tokenizer.prepare()
        assert tokenizer.encode(text, add_special_tokens=False) == expected
        assert tokenizer.decode(expected, skip_special_tokens=False) == text


def test_text_of_any_kind_with_the_small_and_the_whole_model(library: LibraryTokenizer) -> None:
    metadata = gguf_metadata(byte_level_tokenizer_json(), "smollm")
    whole = load_tokenizer(metadata)
    whole.prepare()

    @settings(max_examples=150, deadline=None)
    @given(TEXT)
    def check(text: str) -> None:
        expected = library.encode(text, add_special_tokens=False).ids
        small = load_tokenizer(metadata)
        assert small.encode(text, add_special_tokens=False) == expected
        assert whole.encode(text, add_special_tokens=False) == expected
        assert whole.decode(expected, skip_special_tokens=False) == text

    check()


def test_the_whole_model_is_built_when_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(gguf_metadata(byte_level_tokenizer_json(), "smollm"))
    for _ in range(SHORT_TEXTS_BEFORE_WHOLE):
        tokenizer.encode("a short text")
        assert not tokenizer.is_prepared
    tokenizer.encode("one more")
    assert tokenizer.is_prepared
    long = load_tokenizer(gguf_metadata(byte_level_tokenizer_json(), "smollm"))
    long.encode("word " * 10_000)
    assert long.is_prepared


def test_a_merge_listed_twice_keeps_its_last_rank() -> None:
    metadata = gguf_metadata(byte_level_tokenizer_json(), "smollm")
    merges = metadata["tokenizer.ggml.merges"]
    metadata["tokenizer.ggml.merges"] = [*merges, *merges[:40]]
    small, whole = load_tokenizer(metadata), load_tokenizer(metadata)
    whole.prepare()
    for text in CORPUS:
        assert small.encode(text) == whole.encode(text)
    assert not small.is_prepared or len(CORPUS) > SHORT_TEXTS_BEFORE_WHOLE


def test_ignore_merges_takes_whole_words() -> None:
    metadata = gguf_metadata(byte_level_tokenizer_json(), "llama-bpe")
    tokens = metadata["tokenizer.ggml.tokens"]
    tokens[-1], metadata["tokenizer.ggml.token_type"][-1] = "zqzq", 1
    assert load_tokenizer(metadata).encode("zqzq") == [len(tokens) - 1]
    metadata["tokenizer.ggml.pre"] = "smollm"
    assert load_tokenizer(metadata).encode("zqzq") != [len(tokens) - 1]


def test_special_tokens(from_gguf: Tokenizer) -> None:
    ids = from_gguf.encode("<|im_start|>a<think>b<|im_end|>")
    assert ids[0] == 1 and ids[-1] == 2
    assert from_gguf.decode(ids) == "a<think>b"
    assert from_gguf.decode(ids, skip_special_tokens=False) == "<|im_start|>a<think>b<|im_end|>"
    assert from_gguf.eos_token_ids == (2, 0) and from_gguf.eos_token_id == 2
    assert from_gguf.bos_token_id is None and not from_gguf.adds_bos
    assert from_gguf.special_tokens == {"eos_token": "<|im_end|>"}
    assert {0, 1, 2} == from_gguf.special_token_ids
    assert from_gguf.token_to_id("<think>") == from_gguf.vocab_size - 1
    assert from_gguf.id_to_token(1) == "<|im_start|>"
    assert (
        from_gguf.id_to_token(10**6) is None
        and from_gguf.token_bytes(10**6) == b""
        and from_gguf.token_bytes(-1) == b""
    )


def test_bos_is_there_exactly_once() -> None:
    metadata = gguf_metadata(
        byte_level_tokenizer_json(), "smollm", bos_token_id=1, eos_token_id=2, add_bos_token=True, add_eos_token=True
    )
    tokenizer = load_tokenizer(metadata)
    plain = tokenizer.encode("hi", add_special_tokens=False)
    assert tokenizer.adds_bos
    assert tokenizer.encode("hi") == [1, *plain, 2]
    assert tokenizer.encode("<|im_start|>hi") == [1, *plain, 2]
    assert tokenizer.encode("<|im_start|>hi", add_special_tokens=False) == [1, *plain]
    assert tokenizer.encode("") == [1, 2] and tokenizer.encode("", add_special_tokens=False) == []


def test_half_a_surrogate_pair_is_refused(from_gguf: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="U\\+D83D"):
        from_gguf.encode("a\ud83d")


# --- SentencePiece


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    return load_tokenizer(sentencepiece_metadata(small_sentencepiece()))


def spell(tokenizer: Tokenizer, text: str) -> list[str | None]:
    return [tokenizer.id_to_token(i) for i in tokenizer.encode(text, add_special_tokens=False)]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("hello", ["▁hello"]),
        ("hell hello", ["▁hell", "▁hello"]),
        ("aaaaa", ["▁a", "aaaa"]),
        ("baaa", ["▁", "b", "aa", "a"]),
        ("x   y", ["▁", "x", "▁▁", "▁", "y"]),
        ("é", ["▁", "<0xC3>", "<0xA9>"]),
        ("你好", ["▁", "你", "<0xE5>", "<0xA5>", "<0xBD>"]),
        ("x\n", ["▁", "x", "<0x0A>"]),
        ("a<tool>b", ["▁a", "<tool>", "▁", "b"]),
        ("<s>a", ["<s>", "▁a"]),
        ("", []),
    ],
)
def test_sentencepiece_rules(sentencepiece: Tokenizer, text: str, pieces: list[str]) -> None:
    expected = pieces if text != "baaa" else ["▁", "b", "aaa"]
    assert spell(sentencepiece, text) == expected


def test_sentencepiece_small_equals_whole_and_decodes_back() -> None:
    metadata = sentencepiece_metadata(small_sentencepiece())
    whole = load_tokenizer(metadata)
    whole.prepare()

    @settings(max_examples=150, deadline=None)
    @given(TEXT | st.text("ab▁ ", max_size=30) | st.text("hel o", max_size=30))
    def check(text: str) -> None:
        ids = whole.encode(text)
        assert load_tokenizer(metadata).encode(text) == ids
        assert ids[0] == 1
        if not any(special in text for special in ("<s>", "</s>", "<unk>", "<tool>")):
            # The metaspace is written as a space, whoever typed it.
            assert whole.decode(ids) == text.replace("▁", " ")

    check()


def test_sentencepiece_without_prefix_and_bos() -> None:
    tokenizer = load_tokenizer(
        sentencepiece_metadata(small_sentencepiece(), add_space_prefix=False, add_bos_token=False, add_eos_token=True)
    )
    assert [tokenizer.id_to_token(i) for i in tokenizer.encode("hello a")] == ["he", "ll", "o", "▁a", "</s>"]
    assert tokenizer.decode(tokenizer.encode(" a")) == " a"


def test_phi3_tokens_swallow_white_space() -> None:
    metadata = sentencepiece_metadata(small_sentencepiece()) | {"general.name": "Phi-3 mini"}
    assert spell(load_tokenizer(metadata), "</s>\n a") == ["</s>", "▁a"]
    assert spell(load_tokenizer(metadata), "<s> a") == ["<s>", "▁", "▁a"]


def test_unknown_characters_without_byte_pieces() -> None:
    pieces = [piece for piece in small_sentencepiece() if piece[2] != 6]
    tokenizer = load_tokenizer(sentencepiece_metadata(pieces))
    assert spell(tokenizer, "aéüb") == ["▁a", "<unk>", "b"]


# --- tables are checked once, at load


def change(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(metadata: dict[str, Any]) -> None:
        full = f"tokenizer.ggml.{key}"
        if value is None:
            del metadata[full]
        else:
            metadata[full] = value(metadata[full]) if callable(value) else value

    return apply


@pytest.mark.parametrize(
    ("mutate", "key"),
    [
        (change("model", None), "model"),
        (change("tokens", None), "tokens"),
        (change("tokens", []), "tokens"),
        (change("tokens", 7), "tokens"),
        (change("tokens", lambda t: [*t[:-1], 5]), "tokens"),
        (change("tokens", lambda t: [*t[:-1], t[200]]), "tokens"),
        (change("token_type", lambda t: t[:-1]), "token_type"),
        (change("token_type", lambda t: [*t[:-1], 9]), "token_type"),
        (change("token_type", lambda t: [*t[:-1], "1"]), "token_type"),
        (change("scores", None), "scores"),
        (change("scores", lambda s: [*s, 0.0]), "scores"),
        (change("scores", lambda s: [*s[:-1], float("nan")]), "scores"),
        (change("tokens", lambda t: [*t[:3], "<0x-1>", *t[4:]]), "tokens"),
        (change("tokens", lambda t: [*t[:3], "<0x0g>", *t[4:]]), "tokens"),
        (change("tokens", lambda t: [*t[:3], "<0xaa>", *t[4:]]), "tokens"),
        (change("bos_token_id", 10**6), "bos_token_id"),
        (change("eos_token_id", -2), "eos_token_id"),
        (change("eos_token_id", "2"), "eos_token_id"),
        (change("unknown_token_id", 1 << 40), "unknown_token_id"),
        (change("bos_token_id", 0xFFFFFFFF), ""),
    ],
)
def test_damaged_tables_are_refused(mutate: Callable[[dict[str, Any]], None], key: str) -> None:
    metadata = sentencepiece_metadata(small_sentencepiece())
    mutate(metadata)
    if not key:  # the one that means "none"
        assert not load_tokenizer(metadata).adds_bos
        return
    with pytest.raises(WeightsError) as error:
        load_tokenizer(metadata, name="model.gguf")
    assert error.value.tensor == f"tokenizer.ggml.{key}" and error.value.file == "model.gguf"


def test_arrays_as_the_gguf_reader_gives_them() -> None:
    metadata = sentencepiece_metadata(small_sentencepiece())
    expected = load_tokenizer(metadata).encode("hello a<tool>é")
    metadata["tokenizer.ggml.token_type"] = np.array(metadata["tokenizer.ggml.token_type"], np.int32)
    metadata["tokenizer.ggml.scores"] = np.array(metadata["tokenizer.ggml.scores"], np.float32)
    metadata["tokenizer.ggml.tokens"] = tuple(metadata["tokenizer.ggml.tokens"])
    metadata["tokenizer.ggml.bos_token_id"] = np.uint32(1)
    assert load_tokenizer(metadata).encode("hello a<tool>é") == expected
    for damaged in ([1, 2], np.array([[1]]), np.full(len(small_sentencepiece()), 9)):
        with pytest.raises(WeightsError, match="token_type"):
            load_tokenizer({**metadata, "tokenizer.ggml.token_type": damaged})


def test_what_is_not_implemented_is_refused_by_name() -> None:
    good = gguf_metadata(byte_level_tokenizer_json(), "smollm")
    for key, value, named in [
        ("pre", "no-such-rules", "tokenizer.ggml.pre"),
        ("model", "bert", "tokenizer.ggml.model"),
        ("add_space_prefix", True, "tokenizer.ggml.add_space_prefix"),
    ]:
        with pytest.raises(UnsupportedModelError) as error:
            load_tokenizer({**good, f"tokenizer.ggml.{key}": value})
        assert error.value.key == named and error.value.value == value
    with pytest.raises(UnsupportedModelError, match="remove_extra_whitespaces"):
        load_tokenizer(sentencepiece_metadata(small_sentencepiece(), remove_extra_whitespaces=True))
    with pytest.raises(WeightsError, match="add_bos_token"):
        load_tokenizer({**good, "tokenizer.ggml.add_bos_token": True})


def test_merges_that_name_no_piece_are_found() -> None:
    metadata = gguf_metadata(byte_level_tokenizer_json(), "smollm")
    metadata["tokenizer.ggml.merges"] = [*metadata["tokenizer.ggml.merges"], "qqqqq zzzzz"]
    with pytest.raises(WeightsError, match="merges"):
        load_tokenizer(metadata).prepare()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_only_our_errors_come_out_of_strange_metadata(data: st.DataObject) -> None:
    metadata = sentencepiece_metadata(small_sentencepiece()[:270])
    scalar = st.integers() | st.just(10**400) | st.text(max_size=3) | st.floats()
    strange = st.none() | scalar | st.lists(scalar)
    for key in data.draw(st.lists(st.sampled_from(sorted(metadata)), min_size=1, max_size=3)):
        value = data.draw(strange)
        if isinstance(metadata[key], list) and data.draw(st.booleans()):
            place = data.draw(st.integers(0, max(len(metadata[key]) - 1, 0)))
            metadata[key] = [*metadata[key][:place], value, *metadata[key][place + 1 :]]
        else:
            metadata[key] = value
    with contextlib.suppress(PunaError):
        load_tokenizer(metadata).encode("hello a<tool>é", add_special_tokens=True)


# --- directories


def test_directory_with_its_small_files(tmp_path: Path) -> None:
    write_directory(
        tmp_path,
        tokenizer__json=byte_level_tokenizer_json(),
        tokenizer_config__json={
            "add_bos_token": True,
            "bos_token": {"content": "<|im_start|>"},
            "eos_token": "<|im_end|>",
            "chat_template": "{{ bos_token }}{{ messages[0]['content'] }}",
            "added_tokens_decoder": {"1000": {"content": "<new>", "special": True}},
        },
        special_tokens_map__json={"pad_token": "<|endoftext|>"},
        generation_config__json={"eos_token_id": [0, 2]},
        config__json={"eos_token_id": 5},
    )
    size = LibraryTokenizer.from_str(byte_level_tokenizer_json()).get_vocab_size()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {str(size): {"content": "<new>", "special": True}}
    write_directory(tmp_path, tokenizer_config__json=config)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_token_ids == (0, 2) and tokenizer.bos_token_id == 1 and tokenizer.pad_token_id == 0
    assert tokenizer.encode("<new>") == [1, size] and tokenizer.vocab_size == size + 1
    assert tokenizer.chat_template is not None
    assert tokenizer.encode(tokenizer.chat_template.render([{"role": "user", "content": "<new>"}]), False) == [1, size]
    tokenizer.prepare()
    assert tokenizer.encode("<new>") == [1, size]


@pytest.mark.parametrize(
    ("files", "error", "match"),
    [
        ({}, UnsupportedModelError, "tokenizer.json or tokenizer.model"),
        ({"tokenizer__json": "{"}, WeightsError, "not JSON"),
        ({"tokenizer__json": "[" * 100_000}, WeightsError, "not JSON"),
        ({"tokenizer__json": "[]"}, WeightsError, "no model"),
        ({"tokenizer__json": {"model": {"type": "BPE", "vocab": {"a": "x"}, "merges": []}}}, WeightsError, "integers"),
        ({"tokenizer__json": {"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}}, WeightsError, "two"),
        ({"tokenizer__json": {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}}, WeightsError, "negative"),
        ({"tokenizer__json": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": 3}}}, WeightsError, "merges"),
        (
            {"tokenizer__json": {"model": {"type": "BPE", "vocab": {"a": 1 << 30}, "merges": []}}},
            WeightsError,
            "beyond any",
        ),
        (
            {
                "tokenizer__json": {
                    "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
                    "decoder": {"type": "Odd"},
                }
            },
            UnsupportedModelError,
            "Odd",
        ),
        ({"tokenizer__json": byte_level_tokenizer_json(), "tokenizer_config__json": "[]"}, WeightsError, "object"),
        (
            {"tokenizer__json": byte_level_tokenizer_json(), "generation_config__json": {"eos_token_id": "x"}},
            WeightsError,
            "eos_token_id",
        ),
        (
            {
                "tokenizer__json": byte_level_tokenizer_json(),
                "tokenizer_config__json": {"added_tokens_decoder": {"7": {"content": "<|im_end|>!"}, "x": {}}},
            },
            WeightsError,
            "added_tokens_decoder",
        ),
    ],
)
def test_damaged_directories(tmp_path: Path, files: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        load_tokenizer(write_directory(tmp_path, **files))


def test_loading_in_a_thread(tmp_path: Path) -> None:
    metadata = gguf_metadata(byte_level_tokenizer_json(), "smollm") | {
        "tokenizer.chat_template": "{{ nothing|urlize }}"
    }
    tokenizer = load_tokenizer_async(metadata).result(timeout=30)
    assert tokenizer.encode("a") and tokenizer.chat_template is not None
    with pytest.raises(UnsupportedModelError):
        load_tokenizer_async(tmp_path / "absent").result(timeout=30)
