"""`Constraint`: a compiled grammar. `ConstraintState`: where one text stands in it, and what may come next."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from puna.errors import PunaError
from puna.structured_output.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["Constraint", "ConstraintState", "DeadEndError"]

_Int64Array: TypeAlias = npt.NDArray[np.int64]
_BoolArray: TypeAlias = npt.NDArray[np.bool_]


class DeadEndError(PunaError, RuntimeError):
    """A grammar has no continuation for what was written, or is too complex to find it; the request ends."""

    def __init__(self, position: int, reason: str) -> None:
        self.position = position
        self.reason = reason
        super().__init__(f"the grammar allows nothing after {position} tokens of the text: {reason}")


class Constraint:
    """A compiled grammar, shared by all requests that state it. It never changes.

    Args:
        matcher: The engine's, at the beginning.
        vocabulary: Its tokens.
        num_bytes: About how much memory it takes.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary, num_bytes: int) -> None:
        self._matcher = matcher
        self.vocabulary = vocabulary
        self.num_bytes = num_bytes

    def begin(self) -> ConstraintState:
        """The beginning of a text."""
        return ConstraintState(self._matcher.deep_copy(), self.vocabulary)


class ConstraintState:
    """Where a text stands in its grammar. It is a function of the text's tokens: what is asked is always asked about
    given tokens, and the state follows them, forward or back. One thread at a time.

    Args:
        matcher: The engine's; nobody else has it.
        vocabulary: Its tokens.
        tokens: What it has taken in.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary, tokens: _Int64Array | None = None) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._tokens = np.zeros(0, np.int64) if tokens is None else tokens

    def fork(self) -> ConstraintState:
        """The same state, for a text that goes another way."""
        return ConstraintState(self._matcher.deep_copy(), self._vocabulary, self._tokens)

    def allowed(self, tokens: _Int64Array, ends: frozenset[int] = frozenset()) -> _BoolArray:
        """Which tokens may come next, bool `[V]`. Where the grammar leaves one text only, the tokenizer's own next
        token for it is the one that is allowed: forced text has one spelling.

        Args:
            tokens: The text so far, int64 `[n]`.
            ends: Further tokens that end the text; they are allowed where it may end, and nowhere else.

        Raises:
            DeadEndError: None may, or the grammar is too complex here.
        """
        self._follow(tokens)
        forced = self._matcher.compute_ff_tokens()
        if forced:
            allowed = np.zeros(self._vocabulary.size, dtype=np.bool_)
            allowed[forced[0]] = True
        else:
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            allowed = np.unpackbits(bits, count=self._vocabulary.size, bitorder="little").view(np.bool_)
        self._check(len(tokens))
        if further := ends.difference(self._vocabulary.end_ids):
            allowed[[token for token in further if token < len(allowed)]] = self._matcher.is_accepting()
        if not allowed.any():
            raise DeadEndError(len(tokens), "no token fits")
        return allowed

    def forced(self, tokens: _Int64Array) -> list[int]:
        """The tokens that must come next, whatever the model says: each is the only one that `allowed` allows.

        Raises:
            DeadEndError: As `allowed`.
        """
        self._follow(tokens)
        forced = self._matcher.compute_ff_tokens()
        self._check(len(tokens))
        return list(forced)

    def _follow(self, tokens: _Int64Array) -> None:
        """Takes in what is new, and back what is not there any more."""
        known = self._tokens
        least = min(len(known), len(tokens))
        differing = (known[:least] != tokens[:least]).nonzero()[0]
        common = int(differing[0]) if len(differing) else least
        if common < len(known) and not self._matcher.rollback(len(known) - common):
            self._check(common)
        new = tokens[common:].tolist()
        self._tokens = tokens.copy()
        if new and self._matcher.try_consume_tokens(new) < len(new):
            self._check(len(tokens))
            raise DeadEndError(len(tokens), "a token is not one that it allows")

    def _check(self, position: int) -> None:
        if self._matcher.is_error():
            raise DeadEndError(position, self._matcher.get_error().strip().splitlines()[0])
