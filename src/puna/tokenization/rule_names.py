"""Which `tokenizer.ggml.pre` names the rules of a `tokenizer.json`.

Rules that are written differently may be the same, so they are compared by what they do to texts in which every kind of
character stands beside every other. Rules that no name stands for have none.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any, Final

from tokenizers import Tokenizer

from puna.tokenization.definition import Section
from puna.tokenization.pre_tokenizers import PRE_TOKENIZERS

__all__ = ["probe_texts", "rule_name"]

# Of several names of the same rules the one that most files have.
_PREFERRED: Final = ("llama-bpe", "qwen2", "gpt-2", "smollm", "olmo", "command-r", "tekken", "gpt-4o", "dbrx")
_CHARACTERS: Final = (
    *("a", "Z", "é", "Ж", "ß", "ǅ", "ʰ", "ª", "中", "あ", "ア", "한", "ا", "न", "\u0301", "\u093f", "µ", "À"),
    *("1", "23", "456", "7890", "٣", "५", "½", "²", "Ⅷ", "㊿"),
    *(".", ",", "'", '"', "_", "-", "(", "]", "/", "—", "。", "！", "¿"),
    *("$", "+", "<", "=", "^", "~", "|", "`", "€", "©", "😀", "👩\u200d👩"),
    *(" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u2028", "\u200b", "\x00"),
    *("'s", "'LL", "'re", "'D", "don't", "IT'S", "hello", "World", "naïve"),
)


@cache
def probe_texts() -> tuple[str, ...]:
    """Texts in which every kind of character stands beside every other: all pairs, and many triples, in runs of a few
    hundred characters, which cost less than as many short ones.
    """
    pairs = ["".join(pair) for pair in itertools.product(_CHARACTERS, repeat=2)]
    triples = ["".join(triple) for triple in itertools.islice(_triples(), 20_000)]
    return (*_CHARACTERS, *pairs, *("".join(triples[begin : begin + 40]) for begin in range(0, len(triples), 40)))


def _triples() -> Iterator[tuple[str, ...]]:
    """Triples in an order without an end in one corner: a stride that shares no factor with their number."""
    count = len(_CHARACTERS)
    total, place = count**3, 0
    for _ in range(total):
        place = (place + 7919 * 13) % total
        yield (_CHARACTERS[place % count], _CHARACTERS[place // count % count], _CHARACTERS[place // count**2])


def rule_name(pre_tokenizer: Section | None, normalizer: Section | None, *, ignore_merges: bool) -> str | None:
    """The name of rules, None if there is none.

    Args:
        pre_tokenizer: The section of a `tokenizer.json`.
        normalizer: Likewise; a name stands for both.
        ignore_merges: Preferred among rules that cut alike.
    """
    if pre_tokenizer is None:
        return None
    steps = [json.dumps(section, sort_keys=True) for section in (pre_tokenizer, _normal_form(normalizer))]
    return _rule_name(steps[0], steps[1], ignore_merges)


@lru_cache(64)
def _rule_name(pre_tokenizer: str, normalizer: str, ignore_merges: bool) -> str | None:
    kind = json.loads(normalizer)
    names = sorted(PRE_TOKENIZERS, key=lambda name: (_PREFERRED.index(name) if name in _PREFERRED else 99, name))
    names = [name for name in names if _normal_form(PRE_TOKENIZERS[name].normalizer) == kind]
    names.sort(key=lambda name: PRE_TOKENIZERS[name].ignore_merges != ignore_merges)
    cut = _cutter(json.loads(pre_tokenizer))
    return next((name for name in names if _cuts_alike(cut, _cutter(PRE_TOKENIZERS[name].section))), None)


def _normal_form(normalizer: Section | None) -> list[Any]:
    """A normalizer as a list of steps."""
    if normalizer is None:
        return []
    steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
    return [dict(step) for step in steps]


def _cutter(section: Section) -> Tokenizer:
    model = {"type": "BPE", "vocab": {}, "merges": []}
    return Tokenizer.from_str(json.dumps({"version": "1.0", "model": model, "pre_tokenizer": section}))


def _cuts_alike(first: Tokenizer, second: Tokenizer) -> bool:
    mine, theirs = first.pre_tokenizer, second.pre_tokenizer
    return all(mine.pre_tokenize_str(text) == theirs.pre_tokenize_str(text) for text in probe_texts())
