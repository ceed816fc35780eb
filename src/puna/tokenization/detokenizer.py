"""Text from ids that come one by one, and stop strings in it.

`IncrementalDetokenizer` turns token ids into pieces of text as they come: the pieces joined are the text of all ids,
no piece ends within a character, and U+FFFD appears only for bytes that no later byte can complete.
`StopStringChecker` finds stop strings across the borders of pieces and never lets a part of one out.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from puna.errors import InvalidRequestError


class TokenPieces(Protocol):
    """What a detokenizer asks a tokenizer: see `puna.tokenization.pieces.Pieces`."""

    strip_leading_space: bool

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of one token."""

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control token."""

    def join(self, ids: Sequence[int], *, skip_special_tokens: bool) -> bytes:
        """The bytes of a sequence."""


class HasPieces(Protocol):
    """A tokenizer."""

    @property
    def pieces(self) -> TokenPieces:
        """The bytes of its tokens."""


class IncrementalDetokenizer:
    """Streams the text of generated ids.

    The joined pieces are `decode(prompt_ids + ids)` without its beginning `decode(prompt_ids)`. So a SentencePiece
    model that continues a prompt keeps the space before its first word, and one that starts from nothing does not
    have one. Work per token is proportional to the token's bytes.

    Args:
        tokenizer: The tokenizer.
        prompt_ids: What came before; empty for a text of its own.
        skip_special_tokens: Leave control tokens out.
        shown: Control tokens that are not left out.
    """

    def __init__(
        self,
        tokenizer: HasPieces,
        prompt_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        shown: Collection[int] = (),
    ) -> None:
        self._pieces = tokenizer.pieces
        self._skip = skip_special_tokens
        self._shown = shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # A dummy space is dropped at the very start of a text only.
        self._strip_next = self._pieces.strip_leading_space and not any(map(self._visible, prompt_ids))
        # A prompt that ends within a character: the first ids may complete it. Four bytes is the longest character.
        tail = b""
        for token_id in reversed(prompt_ids[-64:]):
            tail = self._visible(token_id) + tail
            if len(tail) >= 4:
                break
        self._decoder.decode(tail)

    def _visible(self, token_id: int) -> bytes:
        if self._skip and self._pieces.is_special(token_id) and token_id not in self._shown:
            return b""
        return self._pieces.bytes_of(token_id)

    def add(self, token_id: int) -> str:
        """The text that has become certain with this id; may be empty.

        Args:
            token_id: The next id.
        """
        data = self._visible(token_id)
        if not data:
            return ""
        if self._strip_next:
            self._strip_next = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def extend(self, ids: Iterable[int]) -> str:
        """`add` for several ids.

        Args:
            ids: The next ids.
        """
        return "".join([self.add(token_id) for token_id in ids])

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never got complete, else nothing."""
        return self._decoder.decode(b"", final=True)


@dataclass(frozen=True, slots=True)
class StopResult:
    """What a piece of text came to.

    Attributes:
        text: Text that may be shown.
        stop: The stop string that ended the text; None while it goes on.
    """

    text: str
    stop: str | None = None


class _Matcher:
    """Knuth-Morris-Pratt: how many characters of a stop string the text so far ends with."""

    __slots__ = ("_failure", "matched", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._failure = [0] * len(stop)
        length = 0
        for place in range(1, len(stop)):
            while length and stop[place] != stop[length]:
                length = self._failure[length - 1]
            length += stop[place] == stop[length]
            self._failure[place] = length

    def push(self, character: str) -> bool:
        """Takes one character; True when the text now ends with the stop string."""
        while self.matched and self.stop[self.matched] != character:
            self.matched = self._failure[self.matched - 1]
        self.matched += self.stop[self.matched] == character
        return self.matched == len(self.stop)


class StopStringChecker:
    """Finds the first stop string in streamed text.

    The first one to become complete wins; of several that become complete at the same character, the longest. That
    does not depend on how the text is cut into pieces. Text that may be the beginning of a stop string is held back
    until it is clear; nothing behind a stop string is ever given out.

    Args:
        stops: Stop strings; none is fine.
        include_stop: Give out the stop string, too.

    Raises:
        InvalidRequestError: A stop string is empty.
    """

    def __init__(self, stops: Sequence[str] = (), *, include_stop: bool = False) -> None:
        if not all(stops):
            raise InvalidRequestError("an empty text cannot be a stop string", param="stop")
        self._matchers = [_Matcher(stop) for stop in sorted(set(stops), key=len, reverse=True)]
        self._include = include_stop
        self._held = ""
        self._stopped: str | None = None

    @property
    def stopped(self) -> str | None:
        """The stop string that was found, if one was."""
        return self._stopped

    def add(self, text: str) -> StopResult:
        """Takes the next piece of text.

        Args:
            text: The piece.
        """
        if self._stopped is not None:
            return StopResult("", self._stopped)
        if not self._matchers:
            return StopResult(text)
        pending = self._held + text
        for place, character in enumerate(text, len(self._held)):
            complete = None
            for matcher in self._matchers:
                if matcher.push(character) and complete is None:
                    complete = matcher.stop
            if complete is not None:
                self._stopped, self._held = complete, ""
                end = place + 1
                return StopResult(pending[:end] if self._include else pending[: end - len(complete)], complete)
        keep = max(matcher.matched for matcher in self._matchers)
        self._held = pending[len(pending) - keep :]
        return StopResult(pending[: len(pending) - keep])

    def flush(self) -> str:
        """The text that was held back, when the end came first."""
        held, self._held = self._held, ""
        return held
