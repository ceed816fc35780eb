"""What a tokenizer is, as data: pieces, merges and the sections that `tokenizer.json` names.

Both sources (a model directory and GGUF metadata) are turned into one `TokenizerDefinition`; everything behind it works
on that record and does not know where it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from puna.errors import WeightsError

#: A section of tokenizer.json (normalizer, pre_tokenizer, post_processor, decoder), as parsed JSON.
Section = Mapping[str, Any]

#: Larger vocabularies exist in no model; a larger number in a file is damage.
MAX_VOCABULARY = 1 << 24


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is cut out of the text before anything else happens to it.

    Attributes:
        id: The token id.
        content: The text that is matched, exactly.
        special: Control token: left out by `decode(skip_special_tokens=True)`.
        normalized: Matched in the normalized text, not in the text as it was given.
        lstrip: White space to the left of the match is swallowed.
        rstrip: White space to the right of the match is swallowed.
        single_word: Matched between word boundaries only.
    """

    id: int
    content: str
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class Merges(Protocol):
    """The merges of a BPE model."""

    def ranked(self, pieces: Iterable[str]) -> list[tuple[str, str]]:
        """The merges that join two of `pieces` into a third, best first."""

    def all(self) -> list[tuple[str, str]]:
        """Every merge, best first."""


class RankedMerges:
    """Merges as a list, best first: `"left right"` strings or `[left, right]` pairs."""

    def __init__(self, merges: Sequence[str] | Sequence[Sequence[str]]) -> None:
        self._merges = merges
        self._as_text = not merges or isinstance(merges[0], str)

    def __len__(self) -> int:
        return len(self._merges)

    def ranked(self, pieces: Iterable[str]) -> list[tuple[str, str]]:
        known = pieces if isinstance(pieces, (set, frozenset)) else set(pieces)
        pairs = [
            (piece[:cut], piece[cut:])
            for piece in known
            for cut in range(1, len(piece))
            if piece[:cut] in known and piece[cut:] in known
        ]
        # One pass over the list in C is cheaper than an index of it: there are few calls, and the list is long.
        # Merges are all texts or all pairs, as `_as_text` says, which their one declared type cannot.
        found: list[tuple[str, str]]
        if self._as_text:
            wanted = {f"{left} {right}": (left, right) for left, right in pairs}
            found = [wanted[merge] for merge in filter(wanted.__contains__, self._merges)]  # type: ignore[index]
        else:
            found = list(filter(set(pairs).__contains__, map(tuple, self._merges)))  # type: ignore[arg-type]
        if len(set(found)) != len(found):
            # A pair listed twice keeps its last rank, as in the tokenizers library.
            found = list(dict.fromkeys(reversed(found)))[::-1]
        return found

    def all(self) -> list[tuple[str, str]]:
        pairs: list[tuple[str, str]] = []
        for merge in self._merges:
            parts = merge.split(" ") if isinstance(merge, str) else merge
            if len(parts) != 2:
                raise WeightsError(f"merge {merge!r} is not a pair of pieces")
            pairs.append((parts[0], parts[1]))
        return pairs


class ScoredMerges:
    """Merges that follow from the scores of a SentencePiece vocabulary.

    SentencePiece joins the neighbours whose union has the highest score, the leftmost first among equals. As ranks:
    every way to cut a piece into two pieces is a merge, ordered by the score of the piece; among the cuts of one
    piece the longer left side first, because leftmost-first joining leaves the longer side to the left.

    Args:
        scores: Score and id of each piece that text can become: no control, unknown or byte pieces.
    """

    def __init__(self, scores: Mapping[str, tuple[float, int]]) -> None:
        self._scores = scores

    def ranked(self, pieces: Iterable[str]) -> list[tuple[str, str]]:
        scores = self._scores
        known = {piece: scores[piece] for piece in pieces if piece in scores}
        # Among equal scores the order is that of the converters of the ecosystem: longer left, longer right, lower id.
        found = [
            (-score, -cut, cut - len(piece), piece_id, piece)
            for piece, (score, piece_id) in known.items()
            for cut in range(1, len(piece))
            if piece[:cut] in known and piece[cut:] in known
        ]
        found.sort()
        return [(piece[:-cut], piece[-cut:]) for _, cut, _, _, piece in found]

    def all(self) -> list[tuple[str, str]]:
        return self.ranked(self._scores)


@dataclass(frozen=True)
class TokenizerDefinition:
    """Everything that text → ids → text depends on.

    Attributes:
        source: The file, for messages.
        model_type: `BPE`, or another model of the tokenizers library (`Unigram`, `WordLevel`, ...).
        vocabulary: Piece → id.
        merges: Of a BPE model.
        model_options: The other fields of the model section (`unk_token`, `byte_fallback`, `ignore_merges`, ...).
        added_tokens: See `AddedToken`.
        normalizer, pre_tokenizer, post_processor, decoder: Sections of tokenizer.json.
        library_json: The whole tokenizer.json where there is one: what the library is built from for long texts.
        listed: Token texts by id, where the source has them so.
        special_ids: `bos`, `eos`, `unk`, `pad` → id.
        end_ids: Ids that end a generation, `eos` first.
        label: One line for people: kind and pre-tokenizer.
    """

    source: str
    model_type: str
    vocabulary: Mapping[str, int]
    merges: Merges | None
    model_options: Mapping[str, Any]
    added_tokens: tuple[AddedToken, ...]
    normalizer: Section | None
    pre_tokenizer: Section | None
    post_processor: Section | None
    decoder: Section | None
    label: str
    library_json: bytes | None = None
    listed: Sequence[str | None] | None = None
    special_ids: Mapping[str, int] = field(default_factory=dict)
    end_ids: tuple[int, ...] = ()

    @cached_property
    def tokens(self) -> Sequence[str | None]:
        """Token texts by id; None where no token has the id."""
        if self.listed is not None:
            return self.listed
        added = {token.id: token.content for token in self.added_tokens}
        size = 1 + max(max(self.vocabulary.values(), default=-1), max(added, default=-1))
        if size > MAX_VOCABULARY:
            raise WeightsError(f"token id {size - 1} is beyond any vocabulary", file=self.source)
        tokens: list[str | None] = [None] * size
        for token, token_id in self.vocabulary.items():
            tokens[token_id] = token
        for token_id, token in added.items():
            tokens[token_id] = token
        return tokens


def begin_end_template(bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> Section | None:
    """The post_processor section that puts `bos` before and `eos` behind the text; None when there is nothing to put.

    Args:
        bos: Text and id of the first token, or None.
        eos: Text and id of the last token, or None.
    """
    if bos is None and eos is None:
        return None

    def template(type_id: int, sequence: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = [{"Sequence": {"id": sequence, "type_id": type_id}}]
        if bos is not None:
            items.insert(0, {"SpecialToken": {"id": bos[0], "type_id": type_id}})
        if eos is not None:
            items.append({"SpecialToken": {"id": eos[0], "type_id": type_id}})
        return items

    used = [token for token in (bos, eos) if token is not None]
    return {
        "type": "TemplateProcessing",
        "single": template(0, "A"),
        "pair": template(0, "A") + template(1, "B"),
        "special_tokens": {text: {"id": text, "ids": [token_id], "tokens": [text]} for text, token_id in used},
    }
