"""`SamplingRow`: what the sampler needs to know of a request that gets a token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from puna.errors import PunaError
from puna.pipelines.context import MirostatState, TextContext
from puna.pipelines.sampling_params import LogitsProcessor, SamplingParams

Float32Array: TypeAlias = npt.NDArray[np.float32]
Int64Array: TypeAlias = npt.NDArray[np.int64]
AllowedTokens: TypeAlias = npt.NDArray[np.bool_] | PunaError | None

_NONE: Final[Int64Array] = np.zeros(0, dtype=np.int64)


class SamplingRow(NamedTuple):
    """One request's part in a draw.

    Attributes:
        params: How it wants the token.
        tokens: Prompt and generated tokens, int64 `[n]`; the drawn token's position is `n`.
        prompt_length: How many of them are the prompt.
        forbidden: Tokens that may not be drawn now, int64 `[m]`.
        seed: Start of its random numbers.
        vocab_size: Ids from here on are padding of the output matrix and are never drawn; 0: there are none.
        choice: Which of several continuations of one prompt this is.
        processors: The request's own functions over its logits row (float32 `[1, V]`), which they edit in place.
        bad_words: Token sequences that may not be completed.
        dry_breakers: Tokens that interrupt a repetition.
        mirostat: What mirostat remembers of the tokens before; None: nothing.
        allowed: The tokens that the request's grammar allows, bool `[V]`; why it allows none; None: no grammar.
    """

    params: SamplingParams
    tokens: Int64Array
    prompt_length: int
    forbidden: Int64Array
    seed: int = 0
    vocab_size: int = 0
    choice: int = 0
    processors: tuple[Callable[[Float32Array], None], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    dry_breakers: frozenset[int] = frozenset()
    mirostat: MirostatState | None = None
    allowed: AllowedTokens = None

    @classmethod
    def of(cls, context: TextContext, drawn: Int64Array = _NONE, allowed: AllowedTokens = None) -> SamplingRow:
        """A request's part, after the tokens (int64 `[n]`) that this turn has drawn for it already."""
        assert context.seed is not None
        tokens = context.tokens.all
        if len(drawn):
            tokens = np.concatenate([tokens, drawn])
        params = context.sampling_params
        if params.thinking_temperature is not None:
            assert context.thinking is not None
            if context.thinking.holds_next(tokens[context.admission_length :]):
                params = params.while_thinking
        return cls(
            params,
            tokens,
            context.admission_length,
            context.get_min_token_logit_mask(len(drawn) + 1)[-1] if params.min_tokens else _NONE,
            context.seed,
            context.vocab_size,
            context.choice,
            _processors(context) if params.logits_processors else (),
            context.bad_words,
            context.dry_breakers,
            context.mirostat,
            allowed,
        )

    @property
    def position(self) -> int:
        """Where the drawn token will stand."""
        return len(self.tokens)

    @property
    def edits_logits(self) -> bool:
        """Whether anything changes the logits before the draw."""
        return self.params.edits_logits or bool(
            self.allowed is not None or self.processors or len(self.forbidden) or self.bad_words
        )

    @property
    def most_surprise(self) -> float:
        """The largest surprise that mirostat allows, in bits."""
        tau = self.params.mirostat_tau
        return 2 * tau if self.mirostat is None else self.mirostat.at(self.choice, self.position, tau)

    def note_surprise(self, surprise: float) -> None:
        """Tells mirostat the surprise of the token that was drawn, in bits."""
        if self.mirostat is not None:
            error = surprise - self.params.mirostat_tau
            self.mirostat.set(self.choice, self.position + 1, self.most_surprise - self.params.mirostat_eta * error)


def _processors(context: TextContext) -> tuple[Callable[[Float32Array], None], ...]:
    return tuple([_bound(process, context) for process in context.sampling_params.logits_processors or ()])


def _bound(process: LogitsProcessor, context: TextContext) -> Callable[[Float32Array], None]:
    return lambda logits: process(logits, context)
