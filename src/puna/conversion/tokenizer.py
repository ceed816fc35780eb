"""A model directory's tokenizer as the metadata of a GGUF file.

Source: the GGUF specification, `tokenizer.ggml.*`. The two kinds that GGUF describes without loss are written:
byte-level byte-pair encoding under a name for its rules, and SentencePiece's with scores. What was written is read back
and compared with the directory's tokenizer, text by text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from puna.errors import UnsupportedModelError, WeightsError
from puna.tokenization import Tokenizer
from puna.tokenization.definition import TokenizerDefinition
from puna.tokenization.gguf_source import END_OF_TURN_TEXTS, definition_from_gguf
from puna.tokenization.rule_names import probe_texts, rule_name
from puna.tokenization.sentencepiece_model import read_sentencepiece

if TYPE_CHECKING:
    from puna.conversion.gguf_file import MetadataValue

__all__ = ["compare_tokenizers", "tokenizer_metadata"]

_PREFIX: Final = "tokenizer.ggml."
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_UNREACHABLE_SCORE: Final = -1000.0
_PROBES: Final = 600
"""Probe texts that the rebuilt tokenizer is tried on."""


def tokenizer_metadata(
    directory: Path, tokenizer: Tokenizer, vocab_size: int, name: str
) -> tuple[dict[str, MetadataValue], list[str]]:
    """The keys of a tokenizer, and what they cannot say.

    Args:
        directory: The model's.
        tokenizer: Its tokenizer.
        vocab_size: Rows of the embedding; ids without a token are filled up.
        name: `general.name` of the file.

    Returns:
        The keys, and sentences about how a text with special tokens or a plain prompt's beginning is read otherwise.

    Raises:
        UnsupportedModelError: GGUF has no form for it, or what was written encodes a text otherwise.
        WeightsError: It has more tokens than the embedding rows.
    """
    definition = tokenizer.definition
    tokens = definition.tokens
    if len(tokens) > vocab_size:
        message = f"the tokenizer has {len(tokens)} tokens, the embedding {vocab_size} rows"
        raise WeightsError(message, file=directory)
    is_byte_level = _has_step(definition.decoder, "ByteLevel")
    keys = _byte_level(definition) if is_byte_level else _sentencepiece(directory, definition)
    types, texts = _tables(definition, vocab_size, has_bytes=not is_byte_level)
    keys |= {"tokens": texts, "token_type": types}
    if "scores" in keys:
        scores = np.asarray(keys["scores"], np.float32)
        filled = np.full(vocab_size, _UNREACHABLE_SCORE, np.float32)
        filled[: scores.size] = scores
        keys["scores"] = filled
    keys |= _special_ids(definition)
    notes = _edges(tokenizer, keys)
    found: dict[str, MetadataValue] = {_PREFIX + key: value for key, value in keys.items()}
    rebuilt = Tokenizer(definition_from_gguf({**found, "general.name": name}, "the converted tokenizer"))
    notes += _check(directory, tokenizer, rebuilt)
    template = tokenizer.chat_template
    if template is not None:
        found |= {
            "tokenizer.chat_template" + ("" if label == "default" else f".{label}"): text
            for label, text in template.texts.items()
        }
        others = [label for label in template.texts if label != "default"]
        if others:
            found["tokenizer.chat_templates"] = others
    return found, notes


def compare_tokenizers(
    first: Tokenizer, second: Tokenizer, texts: Iterable[str]
) -> tuple[str, list[int], list[int]] | None:
    """The first text that two tokenizers encode differently, with the ids of each; None: they agree on all."""
    for text in texts:
        mine, theirs = first.encode(text, add_special_tokens=False), second.encode(text, add_special_tokens=False)
        if mine != theirs:
            return text, mine, theirs
    return None


def _byte_level(definition: TokenizerDefinition) -> dict[str, MetadataValue]:
    ignores = bool(definition.model_options.get("ignore_merges", False))
    name = rule_name(definition.pre_tokenizer, definition.normalizer, ignore_merges=ignores)
    if name is None:
        rules = {"normalizer": definition.normalizer, "pre_tokenizer": definition.pre_tokenizer}
        raise UnsupportedModelError(
            "pre_tokenizer", rules, file=definition.source, supported="rules that tokenizer.ggml.pre has a name for"
        )
    if definition.merges is None:
        raise UnsupportedModelError("model", definition.model_type, file=definition.source, supported="BPE")
    return {"model": "gpt2", "pre": name, "merges": [f"{left} {right}" for left, right in definition.merges.all()]}


def _sentencepiece(directory: Path, definition: TokenizerDefinition) -> dict[str, MetadataValue]:
    """Scores of `tokenizer.model` where it is there; else those that follow from the order of the merges."""
    if definition.merges is None or definition.model_type != "BPE":
        raise UnsupportedModelError(
            "model", definition.model_type, file=definition.source, supported="BPE: GGUF has no form for others"
        )
    model_path = directory / "tokenizer.model"
    size = len(definition.tokens)
    scores = np.full(size, _UNREACHABLE_SCORE, np.float32)
    if model_path.is_file():
        model = read_sentencepiece(model_path)
        count = min(size, len(model.tokens))
        scores[:count] = model.scores[:count]
    else:
        place = {token: number for number, token in enumerate(definition.tokens) if token is not None}
        for rank, (left, right) in enumerate(definition.merges.all()):
            token_id = place.get(left + right)
            if token_id is not None and scores[token_id] == _UNREACHABLE_SCORE:
                scores[token_id] = -float(rank) / 1024  # above what is unreachable, in float32 for a million merges
    puts_space = any(
        step.get("type") in ("Prepend", "Metaspace") and step.get("prepend_scheme") != "never"
        for section in (definition.normalizer, definition.pre_tokenizer)
        for step in _steps(section)
    )
    return {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": puts_space}


def _tables(
    definition: TokenizerDefinition, vocab_size: int, *, has_bytes: bool
) -> tuple[np.ndarray[Any, Any], list[str]]:
    types = np.full(vocab_size, _UNUSED, np.int32)
    texts = [f"[PAD{number}]" for number in range(vocab_size)]
    for number, text in enumerate(definition.tokens):
        if text is not None:
            types[number], texts[number] = _NORMAL, text
            if has_bytes and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
                types[number] = _BYTE
    for token in definition.added_tokens:
        types[token.id] = _CONTROL if token.special else _USER_DEFINED
    unknown = definition.special_ids.get("unk")
    if has_bytes and unknown is not None:
        types[unknown] = _UNKNOWN
    return types, texts


def _special_ids(definition: TokenizerDefinition) -> dict[str, MetadataValue]:
    roles = {"bos": "bos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
    found: dict[str, MetadataValue] = {
        key: definition.special_ids[role] for role, key in roles.items() if role in definition.special_ids
    }
    ends = list(definition.end_ids)
    eos = definition.special_ids.get("eos", ends[0] if ends else None)
    if eos is None:
        return found
    found["eos_token_id"] = eos
    others = [number for number in ends if number != eos and definition.tokens[number] not in END_OF_TURN_TEXTS]
    found |= dict(zip(("eot_token_id", "eom_token_id"), others, strict=False))
    return found


def _edges(tokenizer: Tokenizer, keys: dict[str, MetadataValue]) -> list[str]:
    """Sets what is put before and behind a plain prompt; says what cannot be."""
    plain, whole = (tokenizer.encode("a", add_special_tokens=wanted) for wanted in (False, True))
    first = next(at for at in range(len(whole) + 1) if whole[at : at + len(plain)] == plain)
    before, behind = whole[:first], whole[first + len(plain) :]
    keys["add_bos_token"], keys["add_eos_token"] = bool(before), bool(behind)
    notes = []
    if before:
        keys["bos_token_id"] = before[0]
    if behind:
        keys["eos_token_id"] = behind[-1]
    for place, ids in (("begins", before), ("ends", behind)):
        if len(ids) > 1:
            texts = "".join(tokenizer.id_to_token(number) or "" for number in ids)
            notes.append(f"a plain prompt {place} with {texts}; the file can say one token")
    return notes


def _check(directory: Path, tokenizer: Tokenizer, rebuilt: Tokenizer) -> list[str]:
    probes = probe_texts()[:: max(1, len(probe_texts()) // _PROBES)]
    # A space before a text that begins with one: some tokenizers of SentencePiece's kind leave it out, GGUF's do not.
    spaced = [text for text in probes if text.startswith(" ")]
    different = compare_tokenizers(tokenizer, rebuilt, [text for text in probes if not text.startswith(" ")])
    if different is not None:
        text, mine, theirs = different
        supported = f"tokenizers that GGUF describes: it would read {theirs[:8]}"
        raise UnsupportedModelError(f"tokens of {text[:40]!r}", mine[:8], file=directory, supported=supported)
    added = [token.content for token in tokenizer.definition.added_tokens][:40]
    different = compare_tokenizers(tokenizer, rebuilt, [f"a {text} b{text}c" for text in added])
    notes = []
    if compare_tokenizers(tokenizer, rebuilt, spaced) is not None:
        notes.append("a text that begins with a space is read with one more from the file")
    if different is not None:
        text, mine, theirs = different
        notes.append(f"{text!r} is read as {theirs} from the file, as {mine} from the directory")
    missing = set(tokenizer.eos_token_ids) - set(rebuilt.eos_token_ids)
    if missing:
        texts = ", ".join(str(tokenizer.id_to_token(number)) for number in sorted(missing))
        notes.append(f"the file does not say that a generation ends with {texts} too")
    return notes


def _steps(section: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    if section is None:
        return ()
    for key in ("normalizers", "pretokenizers", "decoders"):
        if section.get("type") == "Sequence" and key in section:
            return tuple(step for part in section[key] for step in _steps(part))
    return (section,)


def _has_step(section: Mapping[str, Any] | None, kind: str) -> bool:
    return any(step.get("type") == kind for step in _steps(section))
