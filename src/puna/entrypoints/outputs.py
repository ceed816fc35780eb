"""What a request comes back as: one record for finished answers and for growing ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from puna.errors import PunaError
from puna.pipelines.batch import FinishReason

__all__ = [
    "AnswerMessage",
    "BeamSearchOutput",
    "BeamSequence",
    "ChoiceScore",
    "CompletionOutput",
    "Logprob",
    "MessageDelta",
    "PositionLogprobs",
    "RequestOutput",
    "RequestTimings",
    "ToolCall",
    "ToolCallDelta",
]


@dataclass(frozen=True, slots=True)
class Logprob:
    """How likely a token was.

    Attributes:
        logprob: Natural logarithm of its probability.
        rank: 1 for the likeliest token of the vocabulary.
        decoded_token: Its text, with U+FFFD where it is a part of a character; None without a tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


PositionLogprobs: TypeAlias = dict[int, Logprob]
"""The token at a position and the likeliest ones there, by token id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTimings:
    """When things happened to a request, in seconds since it came.

    Attributes:
        first_token_s: Until its first token; None: there is none yet.
        last_token_s: Until its latest token; None: there is none yet.
        finished_s: Until it ended; None: it goes on.
    """

    first_token_s: float | None = None
    last_token_s: float | None = None
    finished_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool that the model calls.

    Attributes:
        id: Names the call; the tool's answer refers to it.
        name: The tool.
        arguments: JSON, as the model wrote it; it grows while the answer does.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerMessage:
    """An answer of a conversation, taken apart. While it grows, each part only gets longer.

    Attributes:
        content: What the user is told.
        reasoning: What the model thought before; None: it is of a kind that does not reason aloud.
        tool_calls: The tools that it calls.
    """

    content: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """What is new of a call.

    Attributes:
        index: Which of the message's calls.
        id: Its id, where the call itself is new.
        name: The tool, where the call itself is new.
        arguments: What is new of the arguments.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageDelta:
    """What is new of a message.

    Attributes:
        content: Of what the user is told.
        reasoning: Of what the model thought.
        tool_calls: Of the calls.
    """

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One continuation of a prompt, as far as it got.

    Attributes:
        index: Which of the request's continuations.
        text: The text, without stop strings (unless they were asked for) and control tokens; never half a character.
        token_ids: What the model generated, an end-of-sequence token included.
        logprobs: One entry per token, where they were asked for.
        cumulative_logprob: Sum of the tokens' log-probabilities, where these were asked for.
        finish_reason: `stop`, `length`, `abort` or `error`; None: it goes on.
        stop_reason: The stop string or stop token id that ended it, `repetition` or `deadline`; None: none of these.
        error: What went wrong, when it ended for that; text and tokens are what came before.
        message: The text taken apart, for answers of conversations; None: it continues a plain prompt.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: list[PositionLogprobs] | None = None
    cumulative_logprob: float | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: PunaError | None = None
    message: AnswerMessage | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing more comes."""
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """The answer to a request: `finished`, or as far as it got.

    Attributes:
        request_id: Identity of the request.
        prompt: The prompt's text, after the chat template; None where token ids were given.
        prompt_token_ids: The prompt as the model got it.
        prompt_logprobs: One entry per token of the prompt where they were asked for; the first is None.
        outputs: Its continuations: `n` of them.
        finished: Whether all of them are.
        seed: What the random numbers came from, given or drawn.
        num_cached_tokens: Tokens of the prompt that were found in the cache.
        num_truncated_tokens: Tokens that `truncate_prompt_tokens` cut off the beginning of the prompt.
        timings: When things happened.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    outputs: list[CompletionOutput]
    finished: bool
    seed: int
    num_cached_tokens: int = 0
    num_truncated_tokens: int = 0
    timings: RequestTimings = field(default_factory=RequestTimings)

    @property
    def error(self) -> PunaError | None:
        """What went wrong with one of its continuations, if anything did."""
        return next((output.error for output in self.outputs if output.error is not None), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceScore:
    """How likely a continuation of a prompt is.

    Attributes:
        text: The continuation; None where token ids were given.
        token_ids: Its tokens.
        token_logprobs: The log-probability of each, given the prompt and the tokens before it.
        is_greedy: Whether each of them is the likeliest token at its place.
    """

    text: str | None
    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]
    is_greedy: bool

    @property
    def logprob(self) -> float:
        """The log-probability of the continuation."""
        return sum(self.token_logprobs)

    @property
    def mean_logprob(self) -> float:
        """The same per token."""
        return self.logprob / len(self.token_logprobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSequence:
    """One of the likeliest texts that a search found.

    Attributes:
        text: Its text; empty without a tokenizer.
        token_ids: Its tokens, an end-of-sequence token included.
        cumulative_logprob: Its log-probability.
        score: The log-probability over `length ** length_penalty`: what texts are ranked by.
        finish_reason: `stop` or `length`.
    """

    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float
    score: float
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchOutput:
    """What a search found for a prompt.

    Attributes:
        prompt_token_ids: The prompt.
        sequences: The likeliest texts, best first.
    """

    prompt_token_ids: tuple[int, ...]
    sequences: list[BeamSequence]


