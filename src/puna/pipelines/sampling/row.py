"""`SamplingRow`: what the sampler needs to know of a request that gets a token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from puna.pipelines.context import MirostatState, TextContext
from puna.pipelines.sampling_params import LogitsProcessor, SamplingParams

Float32Array: TypeAlias = npt.NDArray[np.float32]
Int64Array: TypeAlias = npt.NDArray[np.int64]

_NONE: Final[Int64Array] = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """One request's part in a draw.

    Attributes:
        params: How it wants its tokens.
        tokens: Prompt and generated tokens, int64 `[n]`; the drawn token's position is `n`.
        prompt_length: How many of them are the prompt.
        forbidden: Tokens that may not be drawn now, int64 `[m]`.
        seed: Start of its random numbers.
        vocab_size: Ids from here on are padding of the output matrix and are never drawn; 0: there are none.
        choice: Which of several continuations of one prompt this is.
        processors: The request's own functions over its logits row (float32 `[1, V]`), which they edit in place.
        bad_words: Token sequences that may not be completed.
        dry_breakers: Tokens that interrupt a repetition.
        mirostat: What mirostat remembers of the tokens before.
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
    mirostat: MirostatState = field(default_factory=MirostatState)

    @classmethod
    def of(cls, context: TextContext, drawn: Sequence[int] = ()) -> SamplingRow:
        """A request's part, after the tokens that this turn has drawn for it already."""
        assert context.seed is not None
        tokens = context.tokens.all
        params = context.sampling_params
        return cls(
            params=params,
            tokens=np.concatenate([tokens, np.array(drawn, dtype=np.int64)]) if drawn else tokens,
            prompt_length=context.admission_length,
            forbidden=context.get_min_token_logit_mask(len(drawn) + 1)[-1] if params.min_tokens else _NONE,
            seed=context.seed,
            vocab_size=context.vocab_size,
            choice=context.choice,
            processors=tuple([_bound(process, context) for process in params.logits_processors or ()]),
            bad_words=context.bad_words,
            dry_breakers=context.dry_breakers,
            mirostat=context.mirostat,
        )

    @property
    def position(self) -> int:
        """Where the drawn token will stand."""
        return len(self.tokens)

    @property
    def edits_logits(self) -> bool:
        """Whether anything changes the logits before the draw."""
        return bool(self.processors or len(self.forbidden) or self.bad_words or self.params.edits_logits)


def _bound(process: LogitsProcessor, context: TextContext) -> Callable[[Float32Array], None]:
    return lambda logits: process(logits, context)
