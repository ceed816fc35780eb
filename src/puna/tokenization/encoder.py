"""Text → ids through the `tokenizers` library, without waiting for the whole vocabulary.

Building the library's BPE model of 128k pieces and 280k merges takes a quarter of a second, with the interpreter lock
held. A short prompt does not need it: byte-pair encoding a word only ever touches pieces that are substrings of the
word. So a short text is encoded by a library tokenizer that holds just the pieces and merges within its words. That
is not an approximation: a merge whose result is no substring of a word can never apply to it. The whole model is
built when a long text comes, when many short ones came, or on `prepare`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from puna.errors import UnsupportedModelError, WeightsError
from puna.tokenization.definition import AddedToken, Section, TokenizerDefinition

if TYPE_CHECKING:
    from tokenizers import AddedToken as LibraryAddedToken
    from tokenizers import Tokenizer as LibraryTokenizer

#: Texts up to this many characters are tried on the small model.
SHORT_TEXT = 16_384
#: Substrings that may be looked up for one text; beyond this the whole model is cheaper.
MAX_SUBSTRINGS = 200_000
#: After this many texts on small models the whole model pays for itself.
SHORT_TEXTS_BEFORE_WHOLE = 16

_PLAIN_BPE_OPTIONS = frozenset({"type", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"})


class LibraryEncoder:
    """Encodes text as a definition says; safe to call from several threads.

    Args:
        definition: The tokenizer.
    """

    def __init__(self, definition: TokenizerDefinition) -> None:
        self._definition = definition
        self._lock = threading.Lock()
        self._whole: LibraryTokenizer | None = None
        self._frame: LibraryTokenizer | None = None
        self._short_texts = 0
        self._longest = 0
        self._atoms: dict[str, int] = {}
        extra = {k for k, v in definition.model_options.items() if v not in (None, False, "")} - _PLAIN_BPE_OPTIONS
        self._may_shrink = definition.model_type == "BPE" and definition.merges is not None and not extra

    def prepare(self) -> None:
        """Builds the whole model now; afterwards no call has to build anything."""
        with self._lock:
            self._load_whole()

    @property
    def is_prepared(self) -> bool:
        """Whether the whole model is in memory."""
        return self._whole is not None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`; special tokens that are spelled out in it are recognized.

        Args:
            text: Any Unicode text without lone surrogates.
            add_special_tokens: Let the post-processor add what it adds (BOS, EOS).
        """
        whole = self._whole
        if whole is None:
            with self._lock:
                whole = self._whole
                if whole is None:
                    small = self._small_model(text)
                    if small is not None:
                        return _ids(small, text, add_special_tokens)
                    whole = self._load_whole()
        return _ids(whole, text, add_special_tokens)

    def _load_whole(self) -> LibraryTokenizer:
        if self._whole is None:
            self._whole = build_whole(self._definition)
            self._frame = None
        return self._whole

    def _small_model(self, text: str) -> LibraryTokenizer | None:
        """The frame with the pieces of `text`'s words, or None when the whole model is the better choice."""
        self._short_texts += 1
        if not self._may_shrink or len(text) > SHORT_TEXT or self._short_texts > SHORT_TEXTS_BEFORE_WHOLE:
            return None
        if self._frame is None:
            self._build_frame()
        frame = self._frame
        assert frame is not None
        frame.model = self._bpe(self._atoms, [])
        pieces = self._pieces_within(_words(frame, text))
        if pieces is None:
            return None
        vocabulary = self._definition.vocabulary
        merges = self._definition.merges
        assert merges is not None
        frame.model = self._bpe(
            {**self._atoms, **{piece: vocabulary[piece] for piece in pieces}}, merges.ranked(pieces)
        )
        return frame

    def _build_frame(self) -> None:
        definition = self._definition
        self._longest = max(map(len, definition.vocabulary), default=1)
        # Always present: single characters, byte pieces, added tokens (so that the library gives them their own ids).
        # An added token's text never reaches the model as a word: it is cut out before.
        self._atoms = {piece: i for piece, i in definition.vocabulary.items() if len(piece) == 1}
        self._atoms.update((f"<0x{b:02X}>", i) for b in range(256) if (i := _byte_id(definition, b)) is not None)
        self._atoms.update((token.content, token.id) for token in definition.added_tokens)
        unknown = definition.model_options.get("unk_token")
        if unknown is not None and unknown in definition.vocabulary:
            self._atoms[unknown] = definition.vocabulary[unknown]
        self._frame = build_frame(definition, self._bpe(self._atoms, []))

    def _bpe(self, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
        from tokenizers.models import BPE

        return BPE(vocab=vocabulary, merges=merges, **_bpe_options(self._definition))

    def _pieces_within(self, words: set[str]) -> set[str] | None:
        """Every piece that is a substring of a word; None when that is too much to look up."""
        longest = self._longest
        if sum(len(word) * min(len(word), longest) for word in words) > 2 * MAX_SUBSTRINGS:
            return None
        vocabulary = self._definition.vocabulary
        pieces: set[str] = set()
        for word in words:
            for begin in range(len(word)):
                for end in range(begin + 1, min(len(word), begin + longest) + 1):
                    piece = word[begin:end]
                    if piece in vocabulary:
                        pieces.add(piece)
        return pieces


def _byte_id(definition: TokenizerDefinition, byte: int) -> int | None:
    return definition.vocabulary.get(f"<0x{byte:02X}>")


def _bpe_options(definition: TokenizerDefinition) -> dict[str, Any]:
    return {
        key: definition.model_options[key]
        for key in ("unk_token", "fuse_unk", "byte_fallback", "ignore_merges")
        if definition.model_options.get(key) is not None
    }


def _ids(tokenizer: LibraryTokenizer, text: str, add_special_tokens: bool) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
    return ids


def _words(frame: LibraryTokenizer, text: str) -> set[str]:
    """The words that the model would see, found by encoding with single characters only."""
    encoding = frame.encode(text, add_special_tokens=False)
    words: set[str] = set()
    current: list[str] = []
    previous: int | None = None
    for token, word in zip(encoding.tokens, encoding.word_ids, strict=True):
        # Bytes, unknown and added tokens join with nothing.
        if word != previous or len(token) != 1:
            words.add("".join(current))
            current = []
            previous = word
        if len(token) == 1:
            current.append(token)
    words.add("".join(current))
    words.discard("")
    return words


def build_frame(definition: TokenizerDefinition, model: Any) -> LibraryTokenizer:
    """A library tokenizer with the definition's sections and added tokens around `model`.

    Raises:
        UnsupportedModelError: A section is of a kind that the library does not know.
        WeightsError: An added token's id differs from the one in the file.
    """
    from tokenizers import Tokenizer as LibraryTokenizer

    text = _tokenizer_json(
        normalizer=definition.normalizer,
        pre_tokenizer=definition.pre_tokenizer,
        post_processor=definition.post_processor,
        decoder=definition.decoder,
    )
    try:
        frame = LibraryTokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower than Exception
        raise UnsupportedModelError(
            "tokenizer", str(error), file=definition.source, supported="what the tokenizers library reads"
        ) from error
    frame.model = model
    tokens = [_library_token(token) for token in definition.added_tokens]
    frame.add_tokens(tokens)
    special = [token for token in tokens if token.special]
    if special:
        frame.add_special_tokens(special)
    _check_added_ids(frame, definition.added_tokens, definition.source)
    return frame


def _library_token(token: AddedToken) -> LibraryAddedToken:
    from tokenizers import AddedToken as LibraryAddedToken

    return LibraryAddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )


def build_whole(definition: TokenizerDefinition) -> LibraryTokenizer:
    """The library's tokenizer with the whole vocabulary.

    Raises:
        UnsupportedModelError: The library does not read the file.
        WeightsError: Merges name pieces that are not in the vocabulary, or ids disagree.
    """
    from tokenizers import Tokenizer as LibraryTokenizer

    if definition.library_json is None:
        from tokenizers.models import BPE

        assert definition.merges is not None
        vocabulary = dict(definition.vocabulary)
        vocabulary.update((token.content, token.id) for token in definition.added_tokens)
        try:
            model = BPE(vocab=vocabulary, merges=definition.merges.all(), **_bpe_options(definition))
        except Exception as error:  # the library raises nothing narrower than Exception
            raise WeightsError(
                f"the tokenizer's merges do not fit its pieces: {error}", file=definition.source
            ) from error
        return build_frame(definition, model)
    try:
        whole = LibraryTokenizer.from_buffer(definition.library_json)
    except Exception as error:  # the library raises nothing narrower than Exception
        raise UnsupportedModelError(
            "tokenizer.json", str(error), file=definition.source, supported="what the tokenizers library reads"
        ) from error
    whole.no_truncation()
    whole.no_padding()
    present = whole.get_added_tokens_decoder()
    missing = [_library_token(t) for t in definition.added_tokens if t.id not in present]
    if missing:
        whole.add_tokens(missing)
    _set_post_processor(whole, definition)
    _check_added_ids(whole, definition.added_tokens, definition.source)
    return whole


def _set_post_processor(whole: LibraryTokenizer, definition: TokenizerDefinition) -> None:
    # tokenizer_config.json may have replaced the section: take it from a frame, the only way to build one from JSON.
    from tokenizers import Tokenizer as LibraryTokenizer
    from tokenizers.processors import Sequence as ProcessorSequence

    if definition.post_processor is None:
        whole.post_processor = ProcessorSequence([])
        return
    text = _tokenizer_json(post_processor=definition.post_processor)
    whole.post_processor = LibraryTokenizer.from_str(text).post_processor


def _tokenizer_json(**sections: Section | None) -> str:
    """A tokenizer.json with an empty model and the given sections."""
    frame: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "BPE", "vocab": {}, "merges": []},
        **dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")),
        **sections,
    }
    return json.dumps(frame)


def _check_added_ids(tokenizer: LibraryTokenizer, added: Sequence[AddedToken], source: str) -> None:
    for token in added:
        got = tokenizer.token_to_id(token.content)
        if got != token.id:
            raise WeightsError(
                f"added token {token.content!r} has id {token.id} in the file, {got} by its place", file=source
            )
