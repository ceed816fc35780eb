"""`TokenBuffer`: the tokens of one request, and how far the model has read them.

One growing array is seen in three ways: as storage (prompt, then generated tokens), as a processing window (what is
cached, what the next step reads), and as a stream (what nobody has fetched yet).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["TokenBuffer", "ends_in_repetition"]

_Int64Array: TypeAlias = npt.NDArray[np.int64]
_ROOM: Final = 64


class TokenBuffer:
    """The tokens of one request, int64.

    ```
    |-------- prompt --------|---- generated ----|
    |------ processed ------|---- active ---|.... waiting behind a chunk
    ```

    Args:
        tokens: The prompt: int64 `[n]` with n >= 1. It is copied.

    Raises:
        ValueError: the array is empty or has not one dimension.
        TypeError: the array is not int64.
    """

    def __init__(self, tokens: _Int64Array) -> None:
        if not isinstance(tokens, np.ndarray) or tokens.dtype != np.int64:
            raise TypeError(f"tokens must be an int64 array, got {getattr(tokens, 'dtype', type(tokens).__name__)}")
        if tokens.ndim != 1 or tokens.shape[0] == 0:
            raise ValueError(f"tokens must be one-dimensional and not empty, got shape {tokens.shape}")
        self._length: int = tokens.shape[0]
        self._move(tokens, self._length + _ROOM)
        self._prompt_length: int = self._length
        self._processed_length: int = 0
        self._active_end: int = self._length
        self._streamed_length: int = self._length

    def __len__(self) -> int:
        return self._length

    @property
    def all(self) -> _Int64Array:
        """Prompt and generated tokens, a read-only view."""
        return self._view(0, self._length)

    @property
    def prompt(self) -> _Int64Array:
        """The prompt, a read-only view."""
        return self._view(0, self._prompt_length)

    @property
    def generated(self) -> _Int64Array:
        """What was generated since, with the end-of-sequence token if there was one; a read-only view."""
        return self._view(self._prompt_length, self._length)

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return self._prompt_length

    @property
    def generated_length(self) -> int:
        """Tokens that were generated."""
        return self._length - self._prompt_length

    @property
    def processed_length(self) -> int:
        """Tokens whose keys and values are cached: the next step begins after them."""
        return self._processed_length

    @property
    def active(self) -> _Int64Array:
        """What the next step reads, a read-only view."""
        return self._view(self._processed_length, self._active_end)

    @property
    def remaining_length(self) -> int:
        """Tokens that no step has read yet, those that wait behind a chunk included."""
        return self._length - self._processed_length

    @property
    def active_length(self) -> int:
        """Tokens that the next step reads, at least 1."""
        return self._active_end - self._processed_length

    @property
    def current_position(self) -> int:
        """Position after the active tokens: where the token that the next step makes will stand."""
        return self._active_end

    @property
    def is_chunked(self) -> bool:
        """Whether tokens wait behind the active ones."""
        return self._active_end < self._length

    def chunk(self, n: int) -> None:
        """Let the next step read only the first n of the active tokens.

        Raises:
            ValueError: n is not within 1 to `active_length - 1`.
        """
        if not 1 <= n < self.active_length:
            raise ValueError(f"a chunk must have 1 to {self.active_length - 1} of the active tokens, got {n}")
        self._active_end = self._processed_length + n

    def advance_chunk(self) -> None:
        """Go on after a chunk: it counts as processed, all tokens behind it become active.

        Raises:
            ValueError: nothing waits behind the active tokens.
        """
        if not self.is_chunked:
            raise ValueError("no tokens wait behind the active ones")
        self._processed_length = self._active_end
        self._active_end = self._length

    def skip_processing(self, n: int) -> None:
        """Count the first n active tokens as processed (a cached prefix was found).

        Raises:
            ValueError: n is negative, or fewer than one token would stay active.
        """
        if not 0 <= n < self.active_length:
            raise ValueError(f"0 to {self.active_length - 1} tokens can be skipped, got {n}")
        self._processed_length += n

    def rewind_processing(self, n: int) -> None:
        """Make the last n processed tokens active again.

        Raises:
            ValueError: n is negative, or more tokens than were processed.
        """
        if not 0 <= n <= self._processed_length:
            raise ValueError(f"0 to {self._processed_length} tokens can be rewound, got {n}")
        self._processed_length -= n

    def advance_with_token(self, token: int) -> None:
        """Append a generated token: what was active is processed, the new token is active.

        Raises:
            ValueError: tokens wait behind the active ones; the model has not read them yet.
        """
        if self.is_chunked:
            raise ValueError("a token cannot be appended while tokens wait behind the active ones")
        if self._length == self._array.shape[0]:
            self._move(self._array, 2 * self._length)
        self._array[self._length] = token
        self._processed_length = self._length
        self._length += 1
        self._active_end = self._length

    def append_unread(self, tokens: Sequence[int]) -> None:
        """Append tokens that were not drawn: the model reads them with those that are active.

        Raises:
            ValueError: tokens wait behind the active ones.
        """
        if self.is_chunked:
            raise ValueError("tokens cannot be appended while others wait behind the active ones")
        end = self._length + len(tokens)
        if end > self._array.shape[0]:
            self._move(self._array, 2 * end)
        self._array[self._length : end] = tokens
        self._length = self._active_end = end

    def restart(self) -> None:
        """Make all tokens a new prompt, none of them processed. What was streamed stays streamed."""
        self._prompt_length = self._length
        self._processed_length = 0
        self._active_end = self._length

    @property
    def has_outstanding_generated_tokens(self) -> bool:
        """Whether there are generated tokens that nobody has fetched."""
        return self._streamed_length < self._length

    def consume_recently_generated_tokens(self) -> _Int64Array:
        """The generated tokens that nobody has fetched yet, each of them once (a copy, possibly empty)."""
        fresh = self._array[self._streamed_length : self._length].copy()
        self._streamed_length = self._length
        return fresh

    def copy(self) -> TokenBuffer:
        """The same tokens, read and fetched as far, in memory of their own."""
        other = copy.copy(self)
        other._move(self._array, self._array.shape[0])
        return other

    def __repr__(self) -> str:
        return (
            f"TokenBuffer(prompt={self.prompt_length}, generated={self.generated_length}, "
            f"processed={self.processed_length}, active={self.active_length})"
        )

    def _view(self, begin: int, end: int) -> _Int64Array:
        return self._readable[begin:end]

    def _move(self, tokens: _Int64Array, capacity: int) -> None:
        """Copies the first `len(self)` of `tokens` into memory of its own."""
        self._array = np.empty(capacity, dtype=np.int64)
        self._array[: self._length] = tokens[: self._length]
        self._readable = self._array.view()
        self._readable.flags.writeable = False


def ends_in_repetition(tokens: _Int64Array, min_size: int, max_size: int, min_count: int) -> bool:
    """Whether tokens end with one sequence of `min_size` to `max_size` tokens, `min_count` times in a row.

    Args:
        tokens: int64 `[n]`.
        min_size: Shortest sequence, from 1.
        max_size: Longest one.
        min_count: How often it stands there, from 2.
    """
    length = tokens.shape[0]
    for size in range(min_size, min(max_size, length // min_count) + 1):
        tail = tokens[length - size * min_count :]
        if np.array_equal(tail[size:], tail[:-size]):
            return True
    return False
