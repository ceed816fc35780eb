"""A tokenizer from the metadata of a GGUF file.

Source: the GGUF specification, "tokenizer" keys (`tokenizer.ggml.*`); two kinds of model are built: `gpt2` (byte-level
byte-pair encoding) and `llama` (SentencePiece).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from puna.errors import UnsupportedModelError, WeightsError
from puna.tokenization.definition import (
    MAX_VOCABULARY,
    AddedToken,
    RankedMerges,
    ScoredMerges,
    Section,
    TokenizerDefinition,
    begin_end_template,
)
from puna.tokenization.pre_tokenizers import pre_tokenizer

_PREFIX = "tokenizer.ggml."
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")

#: Control tokens that end a turn whatever the file says: many files name only one of several.
END_OF_TURN_TEXTS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>")

METASPACE = "▁"


class _Reader:
    """Typed reads from metadata; every failure names the key."""

    def __init__(self, metadata: Mapping[str, object], source: str) -> None:
        self._metadata = metadata
        self.source = source

    def damage(self, key: str, message: str) -> WeightsError:
        return WeightsError(message, file=self.source, tensor=_PREFIX + key)

    def raw(self, key: str) -> object:
        return self._metadata.get(_PREFIX + key)

    def text(self, key: str) -> str | None:
        value = self.raw(key)
        if value is not None and not isinstance(value, str):
            raise self.damage(key, f"expected text, found {type(value).__name__}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, (bool, int)) or value not in (0, 1):
            raise self.damage(key, f"expected true or false, found {value!r}")
        return bool(value)

    def token_id(self, key: str, count: int) -> int | None:
        value = self.raw(key)
        if value is None:
            return None
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise self.damage(key, f"expected a token id, found {value!r}")
        number = value.__index__()
        # 2^32 - 1 is how writers store "none".
        if number in (-1, 0xFFFFFFFF):
            return None
        if not 0 <= number < count:
            raise self.damage(key, f"token id {number} is outside of the vocabulary of {count}")
        return int(number)

    def texts(self, key: str) -> list[str]:
        value = self.raw(key)
        if value is None:
            raise self.damage(key, "is missing")
        values = self._listed(key, value)
        try:
            "".join(values)  # the quickest way to ask half a million of them for their type
        except TypeError as error:
            raise self.damage(key, "expected a list of texts") from error
        return values

    def kinds(self, count: int) -> dict[int, int]:
        """Kinds of the tokens that are not normal, by id."""
        key = "token_type"
        value = self.raw(key)
        if value is None:
            return {}
        find = getattr(value, "nonzero", None)
        if find is not None and getattr(value, "shape", None) == (count,):
            # An array of integers: a few thousand interesting entries, found without a loop over all.
            places = (value != _NORMAL).nonzero()[0]  # type: ignore[attr-defined]  # a NumPy array, as just seen
            kinds = dict(zip(places.tolist(), value[places].tolist(), strict=True))  # type: ignore[index]
        else:
            values = self.numbers(key, count) or []
            kinds = {token_id: kind for token_id, kind in enumerate(values) if kind != _NORMAL}
        if not set(kinds.values()) <= {0, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE}:
            raise self.damage(key, f"unknown kinds {sorted(set(kinds.values()) - set(range(7)))[:5]}")
        return kinds

    def numbers(self, key: str, count: int) -> list[Any] | None:
        value = self.raw(key)
        if value is None:
            return None
        values = self._listed(key, value)
        if len(values) != count:
            raise self.damage(key, f"has {len(values)} entries for {count} tokens")
        if not set(map(type, values)) <= {int, float}:
            raise self.damage(key, "expected a list of numbers")
        return values

    def _listed(self, key: str, value: object) -> list[Any]:
        if isinstance(value, list):
            return value
        as_list = getattr(value, "tolist", None)
        if as_list is not None:
            listed = as_list()
            if isinstance(listed, list):
                return listed
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            return list(value)
        raise self.damage(key, f"expected a list, found {type(value).__name__}")


def definition_from_gguf(metadata: Mapping[str, object], source: str = "GGUF metadata") -> TokenizerDefinition:
    """Builds the definition from metadata keys.

    Args:
        metadata: Keys of the file, at least the `tokenizer.ggml.*` ones.
        source: The file, for messages.

    Raises:
        UnsupportedModelError: The model kind or pre-tokenizer is not implemented.
        WeightsError: A table is missing or inconsistent.
    """
    read = _Reader(metadata, source)
    model = read.text("model")
    if model is None:
        raise read.damage("model", "is missing: the file holds no tokenizer")
    if model not in ("gpt2", "llama"):
        raise UnsupportedModelError(_PREFIX + "model", model, file=source, supported="gpt2, llama")
    tokens = read.texts("tokens")
    if not 0 < len(tokens) <= MAX_VOCABULARY:
        raise read.damage("tokens", f"has {len(tokens)} entries")
    kinds = read.kinds(len(tokens))
    vocabulary = _vocabulary(read, tokens)
    special = {
        name: token_id
        for name, key in (
            ("bos", "bos_token_id"),
            ("eos", "eos_token_id"),
            ("unk", "unknown_token_id"),
            ("pad", "padding_token_id"),
        )
        if (token_id := read.token_id(key, len(tokens))) is not None
    }
    build = _byte_level if model == "gpt2" else _sentencepiece
    return build(read, metadata, tokens, kinds, vocabulary, special)


def _vocabulary(read: _Reader, tokens: list[str]) -> dict[str, int]:
    vocabulary = dict(zip(tokens, range(len(tokens)), strict=True))
    # Empty entries are holes in the table; nothing can be encoded as one.
    holes = tokens.count("") if "" in vocabulary else 0
    vocabulary.pop("", None)
    if len(vocabulary) != len(tokens) - holes:
        seen: set[str] = set()
        for token in filter(None, tokens):
            if token in seen:
                raise read.damage("tokens", f"{token!r} is listed twice")
            seen.add(token)
    return vocabulary


def _added(
    tokens: list[str],
    kinds: Mapping[int, int],
    vocabulary: Mapping[str, int],
    special: Mapping[str, int],
    *,
    rstrip: bool,
) -> tuple[AddedToken, ...]:
    # BOS, EOS and known ends of a turn are control tokens even where the file forgot to say so.
    control = {special[role] for role in ("bos", "eos") if role in special}
    control.update(vocabulary[text] for text in END_OF_TURN_TEXTS if text in vocabulary)
    cut_out = (_CONTROL, _UNKNOWN, _USER_DEFINED)
    chosen = control.union(token_id for token_id, kind in kinds.items() if kind in cut_out)
    added = []
    for token_id in sorted(chosen):
        text = tokens[token_id]
        if text:
            is_special = kinds.get(token_id) != _USER_DEFINED or token_id in control
            strips = rstrip and text not in ("<unk>", "<s>", "<|endoftext|>")
            added.append(AddedToken(token_id, text, special=is_special, rstrip=strips))
    return tuple(added)


def _end_ids(read: _Reader, vocabulary: Mapping[str, int], special: Mapping[str, int], count: int) -> tuple[int, ...]:
    named = [special.get("eos"), read.token_id("eot_token_id", count), read.token_id("eom_token_id", count)]
    named += [vocabulary.get(text) for text in END_OF_TURN_TEXTS]
    return tuple(dict.fromkeys(token_id for token_id in named if token_id is not None))


def _post_processor(
    read: _Reader, tokens: list[str], special: Mapping[str, int], *, add_bos: bool, add_eos: bool
) -> Section | None:
    def token(name: str, wanted: bool, key: str) -> tuple[str, int] | None:
        if not wanted:
            return None
        if name not in special:
            raise read.damage(key, f"is true, but the file names no {name} token")
        return tokens[special[name]], special[name]

    return begin_end_template(
        token("bos", read.flag("add_bos_token", add_bos and "bos" in special), "add_bos_token"),
        token("eos", read.flag("add_eos_token", add_eos), "add_eos_token"),
    )


def _byte_level(
    read: _Reader,
    metadata: Mapping[str, object],
    tokens: list[str],
    kinds: Mapping[int, int],
    vocabulary: dict[str, int],
    special: Mapping[str, int],
) -> TokenizerDefinition:
    name = read.text("pre") or "default"
    rules = pre_tokenizer(name, read.source)
    if _BYTE in kinds.values():
        raise read.damage("token_type", "byte tokens belong to SentencePiece vocabularies, not to byte-level ones")
    if read.flag("add_space_prefix", False):
        raise UnsupportedModelError(
            _PREFIX + "add_space_prefix", True, file=read.source, supported="false, with byte-level vocabularies"
        )
    merges = read.texts("merges")
    added = _added(tokens, kinds, vocabulary, special, rstrip=False)
    unreachable = {tokens[token_id] for token_id, kind in kinds.items() if kind == _UNUSED}
    model_vocabulary = {t: i for t, i in vocabulary.items() if t not in unreachable} if unreachable else vocabulary
    return TokenizerDefinition(
        source=read.source,
        model_type="BPE",
        vocabulary=model_vocabulary,
        merges=RankedMerges(merges),
        model_options={"ignore_merges": rules.ignore_merges},
        added_tokens=added,
        normalizer=rules.normalizer,
        pre_tokenizer=rules.section,
        post_processor=_post_processor(read, tokens, special, add_bos=rules.add_bos, add_eos=False),
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        label=f"byte-level BPE, pre-tokenizer {name}",
        listed=[token or None for token in tokens] if "" in tokens else tokens,
        special_ids=special,
        end_ids=_end_ids(read, vocabulary, special, len(tokens)),
    )


def _sentencepiece(
    read: _Reader,
    metadata: Mapping[str, object],
    tokens: list[str],
    kinds: Mapping[int, int],
    vocabulary: dict[str, int],
    special: Mapping[str, int],
) -> TokenizerDefinition:
    scores = read.numbers("scores", len(tokens))
    if scores is None:
        raise read.damage("scores", "is missing")
    # 1e39 is beyond float32, which is what the file holds.
    if not all(-1e39 < score < 1e39 for score in scores):
        raise read.damage("scores", "holds a value that is not finite")
    for token_id, kind in kinds.items():
        if kind == _BYTE and not _BYTE_PIECE.fullmatch(tokens[token_id]):
            raise read.damage("tokens", f"entry {token_id} is marked as a byte but reads {tokens[token_id]!r}")
    unknown = special.get("unk")
    if unknown is None:
        unknown = next((token_id for token_id, kind in kinds.items() if kind == _UNKNOWN), None)
    if read.flag("remove_extra_whitespaces", False):
        raise UnsupportedModelError(_PREFIX + "remove_extra_whitespaces", True, file=read.source, supported="false")
    # Phi-3's tokens swallow the white space behind them; the format has no field for that, only the name tells.
    name = str(metadata.get("general.name", "")).lower()
    rstrip = "phi-3" in name or "phi3" in name
    return sentencepiece_definition(
        source=read.source,
        tokens=tokens,
        kinds=kinds,
        scores=scores,
        added=_added(tokens, kinds, vocabulary, special, rstrip=rstrip),
        unknown=unknown,
        prefix="segment" if read.flag("add_space_prefix", True) else "none",
        charsmap=_charsmap(read),
        post_processor=_post_processor(read, tokens, special, add_bos=True, add_eos=False),
        special_ids={**special, **({} if unknown is None else {"unk": unknown})},
        end_ids=_end_ids(read, vocabulary, special, len(tokens)),
    )


def _charsmap(read: _Reader) -> bytes:
    value = read.raw("precompiled_charsmap")
    if value is None:
        return b""
    as_bytes = getattr(value, "tobytes", None)
    try:
        return bytes(as_bytes() if as_bytes is not None else bytes(value))  # type: ignore[call-overload]  # checked here
    except (TypeError, ValueError) as error:
        raise read.damage("precompiled_charsmap", "expected a list of bytes") from error


def sentencepiece_definition(
    *,
    source: str,
    tokens: Sequence[str],
    kinds: Mapping[int, int],
    scores: Sequence[float],
    added: tuple[AddedToken, ...],
    unknown: int | None,
    prefix: str,
    charsmap: bytes,
    post_processor: Section | None,
    special_ids: Mapping[str, int],
    end_ids: tuple[int, ...],
) -> TokenizerDefinition:
    """The definition of a SentencePiece byte-pair vocabulary.

    Args:
        source: The file, for messages.
        tokens: Pieces by id.
        kinds: Kinds of the pieces that are not normal, by id: 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
        scores: Score of each piece.
        added: Tokens that are cut out of the text.
        unknown: Id for characters that no piece covers.
        prefix: Where a space is put before the text: `segment` (at the start and behind every special token),
            `first` (at the start only) or `none`.
        charsmap: SentencePiece's compiled normalization rules; empty for none.
        post_processor: Section.
        special_ids, end_ids: See `TokenizerDefinition`.
    """
    vocabulary = {token: i for i, token in enumerate(tokens) if token}
    listed: list[str | None] = [token or None for token in tokens]
    for token in added:
        if token.id >= MAX_VOCABULARY:
            raise WeightsError(f"token id {token.id} is beyond any vocabulary", file=source)
        listed += [None] * (token.id + 1 - len(listed))
        listed[token.id] = token.content
    mergeable = {
        token: (float(scores[i]), i)
        for i, token in enumerate(tokens)
        if token and kinds.get(i) not in (_UNKNOWN, _CONTROL, _BYTE)
    }
    normalizers: list[Section] = []
    if charsmap:
        normalizers.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()})
    pre: Section | None = None
    if prefix == "first":
        pre = {"type": "Metaspace", "replacement": METASPACE, "prepend_scheme": "first", "split": False}
    else:
        if prefix == "segment":
            normalizers.append({"type": "Prepend", "prepend": METASPACE})
        normalizers.append({"type": "Replace", "pattern": {"String": " "}, "content": METASPACE})
    decoders: list[Section] = [
        {"type": "Replace", "pattern": {"String": METASPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix != "none":
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    options: dict[str, Any] = {"byte_fallback": _BYTE in kinds.values(), "fuse_unk": True}
    if unknown is not None:
        options["unk_token"] = tokens[unknown]
    return TokenizerDefinition(
        source=source,
        model_type="BPE",
        vocabulary=vocabulary,
        merges=ScoredMerges(mergeable),
        model_options=options,
        added_tokens=added,
        normalizer={"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        pre_tokenizer=pre,
        post_processor=post_processor,
        decoder={"type": "Sequence", "decoders": decoders},
        listed=listed,
        label="SentencePiece BPE" + (" with byte fallback" if _BYTE in kinds.values() else ""),
        special_ids=special_ids,
        end_ids=end_ids,
    )
