"""`Vocabulary`: a tokenizer's tokens as the grammar's engine needs them: bytes, ends, and a canonical spelling."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from puna.errors import InvalidRequestError

if TYPE_CHECKING:
    from llguidance import LLTokenizer

__all__ = ["Vocabulary", "byte_vocabulary"]

_CONTROL: Final = b"\xff"  # the engine's mark of tokens that no text becomes
_MARK: Final = "\x02"  # joins with nothing; what stands behind it is not the beginning of a text


class Vocabulary:
    """The tokens of one model. Safe to use from several threads.

    Args:
        size: How many tokens the model can be given.
        token_bytes: The bytes of a token.
        is_control: Whether a token is a control token: no text of a grammar is made of it.
        end_ids: Tokens that end a text.
        encode: The tokens of a text that stands alone, without those that the tokenizer puts around it.

    Attributes:
        size, token_bytes, end_ids: See above.

    Raises:
        InvalidRequestError: No token ends a text, so that a grammar could not either.
    """

    def __init__(
        self,
        size: int,
        token_bytes: Callable[[int], bytes],
        is_control: Callable[[int], bool],
        end_ids: Sequence[int],
        encode: Callable[[str], list[int]],
    ) -> None:
        self.size = size
        self.end_ids = tuple(token for token in end_ids if token < size)
        if not self.end_ids:
            raise InvalidRequestError(
                "needs an end-of-sequence token, and this model's tokenizer has none", param="structured_outputs"
            )
        self.token_bytes = token_bytes
        self._is_control = is_control
        self._encode = encode
        self._mark: list[int] | None = None
        self._lock = threading.Lock()
        self._engine: LLTokenizer | None = None

    @property
    def engine(self) -> LLTokenizer:
        """The tokens in the engine's form: a trie over their bytes, built when it is first asked for."""
        with self._lock:
            if self._engine is None:
                from llguidance import LLTokenizer

                self._engine = LLTokenizer(cast(Any, _Wrapper(self)), eos_token=list(self.end_ids), slices=[])
            return self._engine

    def is_control(self, token: int) -> bool:
        """Whether a token is a control token."""
        return self._is_control(token)

    def control(self) -> dict[int, str]:
        """The texts of the control tokens and of those that end a text, the first end first."""
        ends = dict.fromkeys(self.end_ids)
        tokens = ends | dict.fromkeys(token for token in range(self.size) if self._is_control(token))
        return {token: self.token_bytes(token).decode("utf-8", "replace") for token in tokens}

    def spelled(self) -> list[bytes]:
        """The bytes of every token; of those that no text becomes, with a mark before them."""
        ends = frozenset(self.end_ids)
        return [
            (_CONTROL if self._is_control(token) or token in ends else b"") + self.token_bytes(token)
            for token in range(self.size)
        ]

    def spell(self, text: str) -> list[int]:
        """The tokenizer's own tokens for a text within a text; without one that has exactly these bytes, the longest
        tokens from left to right.
        """
        if self._mark is None:
            self._mark = self._encode(_MARK)
        tokens = self._encode(_MARK + text)
        if tokens[: len(self._mark)] == self._mark:
            tokens = tokens[len(self._mark) :]
            is_plain = all(token < self.size and not self._is_control(token) for token in tokens)
            if is_plain and b"".join(map(self.token_bytes, tokens)) == text.encode():
                return tokens
        return list(self.engine.greedy_tokenize(text))


def byte_vocabulary() -> Vocabulary:
    """A vocabulary of the 256 bytes and an end: what grammars are checked with where there is no model."""
    return Vocabulary(
        257,
        lambda token: bytes([token]) if token < 256 else b"",
        lambda token: token == 256,
        [256],
        lambda text: list(text.encode()),
    )


class _Wrapper:
    """What the engine asks of a tokenizer written in Python."""

    is_tokenizer_wrapper: Final = True

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.eos_token_id = vocabulary.end_ids[0]
        self.bos_token_id: int | None = None
        self.tokens = vocabulary.spelled()
        self.special_token_ids = [token for token, data in enumerate(self.tokens) if data[:1] == _CONTROL]

    def __call__(self, text: Any) -> list[int]:
        return self._vocabulary.spell(text if isinstance(text, str) else text.decode())
