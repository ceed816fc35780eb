"""`Answer`: one request on its way through the loop, and what turns its tokens into text."""

from __future__ import annotations

import time
from collections.abc import Sequence

from puna.entrypoints.conversation import Reading
from puna.entrypoints.outputs import (
    AnswerMessage,
    CompletionOutput,
    Logprob,
    PositionLogprobs,
    RequestOutput,
    RequestTimings,
)
from puna.entrypoints.tool_calls import MessageParser
from puna.errors import PunaError
from puna.pipelines.batch import FinishReason, GenerationDelta
from puna.pipelines.context import LogProbabilities, TextContext
from puna.pipelines.prompt_reading import LogprobReader
from puna.pipelines.sampling_params import SamplingParams
from puna.tokenization import IncrementalDetokenizer, StopStringChecker, Tokenizer

__all__ = ["Answer"]


class _Choice:
    """One continuation, as it comes."""

    def __init__(
        self,
        params: SamplingParams,
        index: int,
        tokenizer: Tokenizer | None,
        before: Sequence[int],
        reading: Reading | None,
    ) -> None:
        self.index = index
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.error: PunaError | None = None
        self.num_cached_tokens = 0
        self.records: list[LogProbabilities] = []
        self._entries: list[PositionLogprobs] = []  # of the records, as far as they were looked at
        self._text: list[str] = []
        self._detokenizer = None
        if tokenizer is not None and params.detokenize:
            self._detokenizer = IncrementalDetokenizer(
                tokenizer,
                before,
                skip_special_tokens=params.skip_special_tokens,
                shown=frozenset() if reading is None else reading.shown,
            )
        self._parser = None if reading is None else reading.make_parser()
        self._message: AnswerMessage | None = None
        self._num_parsed = 0  # pieces of text
        self._is_parsed = False
        self._stops = StopStringChecker(params.stop or (), include_stop=params.include_stop_str_in_output)

    def take(self, delta: GenerationDelta) -> bool:
        """Turns a step's tokens into text; True when a stop string ended it, which the loop cannot know."""
        if self.finish_reason is not None:
            return False  # tokens that were on their way when a stop string ended it
        finish, reason = delta.finish_reason, delta.stop_reason
        count = 0
        for token in delta.tokens:
            count += 1
            self.tokens.append(token)
            result = self._stops.add(self._detokenizer.add(token) if self._detokenizer is not None else "")
            self._text.append(result.text)
            if result.stop is not None:
                finish, reason = FinishReason.STOP, result.stop
                break
        is_stopped = self._stops.stopped is not None
        if finish is not None and not is_stopped:
            last = self._stops.add(self._detokenizer.flush() if self._detokenizer is not None else "")
            self._text.append(last.text if last.stop is not None else last.text + self._stops.flush())
        self.records += delta.log_probabilities[:count]
        self.finish_reason, self.stop_reason = finish, reason
        self.error = None if is_stopped else delta.error
        self.num_cached_tokens = max(self.num_cached_tokens, delta.num_cached_tokens)
        return is_stopped

    @property
    def cumulative_logprob(self) -> float:
        """The log-probability of what was generated."""
        return sum(record.token_log_probabilities[0] for record in self.records)

    def output(self, tokenizer: Tokenizer | None, reports: bool) -> CompletionOutput:
        """The continuation as far as it got; `reports`: with log-probabilities."""
        if self._parser is not None:
            self._parse(self._parser)
        if len(self._text) > 1:
            self._text = ["".join(self._text)]
        self._num_parsed = len(self._text)
        if reports:
            self._entries += [_entries(record, tokenizer) for record in self.records[len(self._entries) :]]
        return CompletionOutput(
            index=self.index,
            text="".join(self._text),
            token_ids=tuple(self.tokens),
            logprobs=list(self._entries) if reports else None,
            cumulative_logprob=self.cumulative_logprob if reports else None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            error=self.error,
            message=self._message,
        )

    def _parse(self, parser: MessageParser) -> None:
        """Takes apart what came since the last look."""
        for piece in self._text[self._num_parsed :]:
            parser.add(piece)
        if self.finish_reason is not None and not self._is_parsed:
            self._is_parsed = True
            parser.finish()
        self._message = parser.message


class Answer:
    """The answer to one request, as it comes.

    Args:
        context: The request.
        tokenizer: Its model's; None: there is none.
        before: Tokens that the text continues; empty for a text of its own.
        reading: How the answer is taken apart; None: it continues a plain prompt.
        prompt: The prompt's text, if there was one.
        num_truncated_tokens: Tokens that were cut off the prompt.
        num_returned: How many continuations are returned: the likeliest ones.
        reports_logprobs: Whether log-probabilities of the output are part of the answer.

    Attributes:
        context: The request.
        has_news: Whether something came that nobody has looked at.
    """

    def __init__(
        self,
        context: TextContext,
        tokenizer: Tokenizer | None,
        before: Sequence[int],
        *,
        reading: Reading | None = None,
        prompt: str | None = None,
        num_truncated_tokens: int = 0,
        num_returned: int = 1,
        reports_logprobs: bool = False,
    ) -> None:
        self.context = context
        self.has_news = False
        self._tokenizer = tokenizer
        params = context.sampling_params
        self._choices = [_Choice(params, index, tokenizer, before, reading) for index in range(context.num_choices)]
        self._prompt = prompt
        self._prompt_token_ids = tuple(context.tokens.all[: context.admission_length].tolist())
        self._read_prompt: list[PositionLogprobs | None] | None = None
        self._num_truncated = num_truncated_tokens
        self._num_returned = num_returned
        self._reports = reports_logprobs
        self._begin = time.perf_counter()
        self._first: float | None = None
        self._last: float | None = None
        self._end: float | None = None

    @property
    def is_finished(self) -> bool:
        """Whether nothing more comes."""
        return all(choice.finish_reason is not None for choice in self._choices)

    def take(self, delta: GenerationDelta) -> bool:
        """Takes in what a step brought for one of the continuations.

        Returns:
            Whether a stop string ended it, which the loop cannot know.
        """
        is_stopped = self._choices[delta.choice].take(delta)
        now = time.perf_counter() - self._begin
        if delta.tokens:
            self._first = now if self._first is None else self._first
            self._last = now
        if self.is_finished:
            self._end = now
        self.has_news = True
        return is_stopped

    def output(self) -> RequestOutput:
        """The answer as far as it got."""
        self.has_news = False
        context = self.context
        assert context.seed is not None
        return RequestOutput(
            request_id=context.request_id,
            prompt=self._prompt,
            prompt_token_ids=self._prompt_token_ids,
            prompt_logprobs=self._prompt_logprobs(),
            outputs=self._outputs(),
            finished=self.is_finished,
            seed=context.seed,
            num_cached_tokens=max(choice.num_cached_tokens for choice in self._choices),
            num_truncated_tokens=self._num_truncated,
            timings=RequestTimings(first_token_s=self._first, last_token_s=self._last, finished_s=self._end),
        )

    def _outputs(self) -> list[CompletionOutput]:
        """The continuations; of finished ones the likeliest per token come first, where more were made than asked."""
        outputs = [choice.output(self._tokenizer, self._reports) for choice in self._choices]
        if self._num_returned == len(outputs) or not self.is_finished:
            return outputs[: self._num_returned]
        means = [choice.cumulative_logprob / max(1, len(choice.tokens)) for choice in self._choices]
        usable = [choice.error is None for choice in self._choices]
        order = sorted(range(len(outputs)), key=lambda i: (not usable[i], -means[i]))
        return [outputs[i] for i in order[: self._num_returned]]

    def _prompt_logprobs(self) -> list[PositionLogprobs | None] | None:
        reader = self.context.reader
        if not isinstance(reader, LogprobReader):
            return None
        if self._read_prompt is not None:
            return self._read_prompt
        entries = [None, *(_entries(record, self._tokenizer) for record in reader.records)]
        if self._first is not None:  # nothing more comes
            self._read_prompt = entries
        return entries


def _entries(record: LogProbabilities, tokenizer: Tokenizer | None) -> PositionLogprobs:
    """The entries of a record of one position."""
    (values,), (ranks,) = record.top_log_probabilities, record.ranks
    return {token: Logprob(value, ranks[token], _text(token, tokenizer)) for token, value in values.items()}


def _text(token: int, tokenizer: Tokenizer | None) -> str | None:
    return None if tokenizer is None else tokenizer.token_bytes(token).decode("utf-8", "replace")
