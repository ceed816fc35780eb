"""Which tokens grammars allow next, found while the model computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from puna.errors import PunaError
from puna.pipelines.context import TextContext
from puna.pipelines.sampling.row import AllowedTokens, Int64Array

__all__ = ["AllowedTokensFinder"]


class AllowedTokensFinder:
    """Asks the grammars of a step's requests, in a thread of its own that begins with the first grammar."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None

    def find(
        self, contexts: Sequence[TextContext], drawn: Callable[[], Int64Array]
    ) -> Callable[[], list[AllowedTokens]] | None:
        """Begins to look.

        Args:
            contexts: Who gets a token.
            drawn: Gives the tokens that they got in this turn already, int64 `[B, n]`.

        Returns:
            What waits, and gives an entry for each of them; None: none of them has a grammar.
        """
        if all(context.matcher is None for context in contexts):
            return None
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="puna-grammars")
        tokens = drawn()
        return self._thread.submit(lambda: [_allowed(*values) for values in zip(contexts, tokens, strict=True)]).result


def _allowed(context: TextContext, drawn: Int64Array) -> AllowedTokens:
    if context.matcher is None:
        return None
    tokens = context.output_tokens
    if len(drawn):
        tokens = np.concatenate([tokens, drawn])
        if context.eos_tracker.is_eos(tokens):  # it has ended within the turn; what follows is dropped
            return None
    try:
        return context.matcher.allowed(tokens, context.eos_tracker.eos_token_ids)
    except PunaError as error:
        return error
