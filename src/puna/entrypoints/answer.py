"""`Answer`: one request on its way through the loop, and what turns its tokens into text."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from puna.errors import PunaError
from puna.pipelines.batch import FinishReason, GenerationDelta
from puna.pipelines.context import LogProbabilities, TextContext
from puna.tokenization import IncrementalDetokenizer, StopStringChecker, Tokenizer


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What a step brought for a request.

    Attributes:
        text: New text; never a part of a character or of a stop string.
        tokens: New tokens, those that give no text included.
        finish_reason: Why the request ended, or None.
        log_probabilities: One record per token where they were asked for. With `echo` the first record begins with the
            prompt's tokens, from the second on.
        error: What went wrong, when it ended for that.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None = None
    log_probabilities: tuple[LogProbabilities, ...] = ()
    error: PunaError | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished text.

    Attributes:
        text: The text, without stop strings and control tokens.
        token_ids: What the model generated, an end-of-sequence token included.
        prompt_token_ids: What it was given.
        finish_reason: Why it ended.
        num_cached_tokens: Prompt tokens that were found in the cache.
        log_probabilities: As in `TextDelta`, one record per token of `token_ids`.
        error: What went wrong, when it ended for that; text and tokens are what came before.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: FinishReason
    num_cached_tokens: int = 0
    log_probabilities: tuple[LogProbabilities, ...] = ()
    error: PunaError | None = None


class Answer:
    """The answer to one request, as it comes.

    Args:
        context: The request.
        tokenizer: Its model's.
        before: Tokens that the text continues; empty for a text of its own.

    Attributes:
        context: The request.
        deltas: What nobody has fetched yet, oldest first.
    """

    def __init__(self, context: TextContext, tokenizer: Tokenizer, before: Sequence[int]) -> None:
        self.context = context
        self.deltas: deque[TextDelta] = deque()
        wants_text = context.sampling_params.detokenize
        self._detokenizer = IncrementalDetokenizer(tokenizer, before) if wants_text else None
        self._stops = StopStringChecker(context.eos_tracker.eos_stop_strings)
        self._all: list[TextDelta] = []
        self._num_cached_tokens = 0

    @property
    def is_finished(self) -> bool:
        """Whether nothing more comes."""
        return bool(self._all) and self._all[-1].finish_reason is not None

    def take(self, delta: GenerationDelta) -> bool:
        """Turns a step's tokens into text.

        Returns:
            Whether a stop string ended the text, which the loop cannot know.
        """
        finish = delta.finish_reason
        text = ""
        tokens: list[int] = []
        for token in delta.tokens:
            tokens.append(token)
            result = self._stops.add(self._detokenizer.add(token) if self._detokenizer is not None else "")
            text += result.text
            if result.stop is not None:
                finish = FinishReason.STOP
                break
        is_stopped = self._stops.stopped is not None
        if finish is not None and not is_stopped:
            last = self._stops.add(self._detokenizer.flush() if self._detokenizer is not None else "")
            text += last.text if last.stop is not None else last.text + self._stops.flush()
        records = delta.log_probabilities[: len(tokens)]
        made = TextDelta(text, tuple(tokens), finish, records, None if is_stopped else delta.error)
        self.deltas.append(made)
        self._all.append(made)
        self._num_cached_tokens = delta.num_cached_tokens
        return is_stopped

    def whole(self) -> Generation:
        """All of it, when it is finished."""
        assert self.is_finished, "the answer has no end yet"
        last = self._all[-1]
        assert last.finish_reason is not None
        prompt = self.context.tokens.all[: self.context.admission_length]
        return Generation(
            text="".join(delta.text for delta in self._all),
            token_ids=tuple(token for delta in self._all for token in delta.tokens),
            prompt_token_ids=tuple(prompt.tolist()),
            finish_reason=last.finish_reason,
            num_cached_tokens=self._num_cached_tokens,
            log_probabilities=tuple(record for delta in self._all for record in delta.log_probabilities),
            error=last.error,
        )
