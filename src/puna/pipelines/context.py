"""`TextContext`: everything the engine knows about one request, from admission to its last token."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from puna.errors import InvalidRequestError, PunaError
from puna.pipelines.prompt_rows import PromptReader
from puna.pipelines.request import RequestID, new_request_id
from puna.pipelines.sampling_params import SamplingParams
from puna.pipelines.thinking import ThinkingSection
from puna.pipelines.tokens import TokenBuffer, ends_in_repetition
from puna.structured_output.constraint import ConstraintState

__all__ = [
    "BatchType",
    "EOSTracker",
    "GenerationStatus",
    "LogProbabilities",
    "MirostatState",
    "TextContext",
    "TextGenerationInputs",
    "TextGenerationOutput",
    "TokenBuffer",
]

REPETITION: Final = "repetition"
"""The reason of a text that ended because it was caught in a loop."""

DEADLINE: Final = "deadline"
"""The reason of a text that ended because its time was up."""

_SEED_BITS: Final = 32


class GenerationStatus(StrEnum):
    """Where a request stands."""

    ACTIVE = "active"
    END_OF_SEQUENCE = "end_of_sequence"
    MAXIMUM_LENGTH = "maximum_length"
    ABORTED = "aborted"

    @property
    def is_done(self) -> bool:
        """Whether nothing more will be generated."""
        return self is not GenerationStatus.ACTIVE


class BatchType(StrEnum):
    """Whether a batch reads prompts (`CE`, context encoding) or only continues texts (`TG`, token generation)."""

    CE = "context_encoding"
    TG = "token_generation"


@dataclass(frozen=True, slots=True)
class LogProbabilities:
    """Natural logarithms of probabilities at one or more positions of one request, as Python numbers.

    Attributes:
        token_log_probabilities: For each position, that of the token that stands there.
        top_log_probabilities: For each position, token id -> log-probability of the n likeliest tokens, likeliest
            first, and of the token that stands there.
        ranks: For each position, token id -> how many tokens are at least as likely (of equal ones those of lower
            ids), for the same tokens; empty: not counted.
    """

    token_log_probabilities: list[float]
    top_log_probabilities: list[dict[int, float]]
    ranks: list[dict[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.token_log_probabilities) != len(self.top_log_probabilities):
            raise ValueError(
                f"{len(self.token_log_probabilities)} token entries, {len(self.top_log_probabilities)} top entries"
            )

    def __len__(self) -> int:
        return len(self.token_log_probabilities)


@dataclass(frozen=True)
class EOSTracker:
    """What ends a text.

    Attributes:
        eos_token_ids: Tokens that do.
        eos_sequences: Token sequences that do, as the end of what was generated.
        eos_stop_strings: Strings that do. They are looked for in text, so not here but in the detokenizer's room.
    """

    eos_token_ids: frozenset[int] = frozenset()
    eos_sequences: tuple[tuple[int, ...], ...] = ()
    eos_stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(not sequence for sequence in self.eos_sequences):
            raise ValueError("an end-of-sequence token sequence is empty")

    def is_eos(self, generated: npt.NDArray[np.int64]) -> bool:
        """Whether the generated tokens (int64 `[n]`) end the text."""
        if generated.shape[0] == 0:
            return False
        if int(generated[-1]) in self.eos_token_ids:
            return True
        return bool(self.eos_sequences) and any(
            len(sequence) <= generated.shape[0] and tuple(generated[-len(sequence) :].tolist()) == sequence
            for sequence in self.eos_sequences
        )

    def ignoring_eos(self) -> EOSTracker:
        """Only the stop strings: what `ignore_eos` leaves."""
        return EOSTracker(eos_stop_strings=self.eos_stop_strings)


class MirostatState:
    """What mirostat aims at, by choice and position, so that a step that is taken again finds what it found before."""

    def __init__(self) -> None:
        self._mu: dict[tuple[int, int], float] = {}

    def at(self, choice: int, position: int, tau: float) -> float:
        """The largest surprise, in bits, of the token that will stand at a position."""
        return self._mu.get((choice, position), 2 * tau)

    def set(self, choice: int, position: int, mu: float) -> None:
        """Takes in what the token before the position told."""
        self._mu[choice, position] = mu
        self._mu.pop((choice, position - 2), None)


class Adapter(Protocol):
    """What the loop knows of an adapter."""

    @property
    def content_id(self) -> str:
        """Its identity: equal for adapters that compute the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextGenerationOutput:
    """What became of a request since the last look.

    Attributes:
        request_id: The request.
        tokens: Tokens generated since.
        final_status: Where it stands.
        log_probabilities: One record per token of `tokens` where they were asked for, else None.
        num_cached_tokens: Prompt tokens that were found in the prefix cache at admission.
    """

    request_id: RequestID
    tokens: list[int]
    final_status: GenerationStatus
    log_probabilities: list[LogProbabilities] | None = None
    num_cached_tokens: int = 0


@dataclass(kw_only=True)
class TextContext:
    """One request inside the engine. It has one owner at a time.

    Attributes:
        tokens: Prompt and generated tokens.
        max_length: Most tokens of prompt and output together.
        request_id: The request.
        eos_tracker: What ends the text. With `sampling_params.ignore_eos` only its stop strings count.
        sampling_params: How tokens are chosen.
        model_name: The model or adapter that the client named; None: the model.
        adapter: The adapter whose weights it is computed with, or None.
        seed: Start of its random numbers; None: that of `sampling_params`, or a number that is drawn now.
        reader: Looks at the prompt's rows, or None.
        is_read_only: It ends when its prompt is read; no token is drawn.
        bad_words: Token sequences that are not generated.
        dry_breakers: Tokens that interrupt a repetition for the DRY penalty.
        mirostat: What mirostat remembers; forks share it.
        stop_reason: The token id or the word that ended the text, where it was not the end-of-sequence token.
        matcher: Where the text stands in the grammar that it must follow, or None.
        thinking: Where the reasoning is, for a `thinking_temperature`; None: not known.
        status: Where the request stands.
        cached_prefix_length: Prompt tokens that were found in the prefix cache when it was first admitted.
        vocab_size: Tokens of the tokenizer; 0: not checked.
        cache_salt: Separates this request's cached prefix from those of others, or None.
        target_endpoint: Another worker's address, or None.
        num_choices: How many continuations of the prompt are wanted, from 1; the prompt is read once.
        choice: Which of them this is. Random numbers depend on it.
        priority: Requests with a lower number go first.
        deadline: When the request ends whatever it has by then, in seconds of `time.monotonic`; None: never.
        admission_length: Tokens of the prompt at admission. Unlike `tokens.prompt_length` it survives a `reset`.

    Raises:
        InvalidRequestError: the prompt has more tokens than `max_length`, a token is outside the vocabulary, or
            `num_choices` is below 1.
    """

    tokens: TokenBuffer
    max_length: int
    request_id: RequestID = field(default_factory=new_request_id)
    eos_tracker: EOSTracker = field(default_factory=EOSTracker)
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    model_name: str | None = None
    adapter: Adapter | None = None
    seed: int | None = None
    reader: PromptReader | None = None
    is_read_only: bool = False
    bad_words: tuple[tuple[int, ...], ...] = ()
    dry_breakers: frozenset[int] = frozenset()
    mirostat: MirostatState = field(default_factory=MirostatState)
    stop_reason: int | str | None = None
    matcher: ConstraintState | None = None
    thinking: ThinkingSection | None = None
    status: GenerationStatus = GenerationStatus.ACTIVE
    cached_prefix_length: int = 0
    vocab_size: int = 0
    cache_salt: str | None = None
    target_endpoint: str | None = None
    num_choices: int = 1
    choice: int = 0
    priority: int = 0
    deadline: float | None = None
    admission_length: int = field(init=False)
    _pending_log_probabilities: list[LogProbabilities] = field(init=False, default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if len(self.tokens) > self.max_length:
            raise InvalidRequestError(
                f"the prompt has {len(self.tokens)} tokens, at most {self.max_length} fit", param="max_length"
            )
        if self.num_choices < 1:
            raise InvalidRequestError(f"must be at least 1, got {self.num_choices}", param="n")
        if self.vocab_size:
            outside = [int(t) for t in self.tokens.all if not 0 <= t < self.vocab_size]
            if outside:
                raise InvalidRequestError(
                    f"token {outside[0]} is outside the vocabulary of {self.vocab_size}", param="prompt"
                )
        if self.sampling_params.ignore_eos:
            self.eos_tracker = self.eos_tracker.ignoring_eos()
        if self.seed is None:
            stated = self.sampling_params.seed
            self.seed = secrets.randbits(_SEED_BITS) if stated is None else stated
        self.admission_length = len(self.tokens)

    @property
    def is_done(self) -> bool:
        """Whether nothing more will be generated."""
        return self.status.is_done

    @property
    def is_initial_prompt(self) -> bool:
        """Whether nothing was generated since the prompt (or since a `reset`)."""
        return self.tokens.generated_length == 0

    @property
    def output_tokens(self) -> npt.NDArray[np.int64]:
        """Everything generated since admission, int64 `[n]`: unlike `tokens.generated` a `reset` does not empty it."""
        return self.tokens.all[self.admission_length :]

    @property
    def log_probabilities(self) -> int:
        """How many likeliest tokens are reported with each token; 0: none."""
        return self.sampling_params.logprobs or 0

    @property
    def log_probabilities_echo(self) -> bool:
        """Whether log-probabilities of the prompt are reported too."""
        return self.sampling_params.prompt_logprobs is not None

    @property
    def needs_prompt_rows(self) -> bool:
        """Whether the reader waits for rows of the prompt: until the first token is drawn."""
        return self.reader is not None and self.output_tokens.shape[0] == 0

    def fork(self, choice: int) -> TextContext:
        """Another continuation of what there is so far; from here on the two go separate ways."""
        other = copy.copy(self)
        other.choice = choice
        other.matcher = None if self.matcher is None else self.matcher.fork()
        other.tokens = self.tokens.copy()
        other._pending_log_probabilities = list(self._pending_log_probabilities)
        return other

    def update(self, token: int, log_probabilities: LogProbabilities | None = None) -> None:
        """Take the token that a step sampled.

        After a chunk of a longer prompt the token means nothing: it is dropped and the next chunk becomes active.

        Raises:
            RuntimeError: the token is negative or outside the vocabulary.
        """
        if self.tokens.is_chunked:
            self.tokens.advance_chunk()
            return
        if token < 0 or (self.vocab_size and token >= self.vocab_size):
            raise RuntimeError(f"request {self.request_id}: the sampled token {token} is outside the vocabulary")
        if log_probabilities is not None:
            self._pending_log_probabilities.append(log_probabilities)
        tokens = self.tokens
        tokens.advance_with_token(token)
        detection = self.sampling_params.repetition_detection
        if self.eos_tracker.is_eos(self.output_tokens):
            self.status = GenerationStatus.END_OF_SEQUENCE
            if token in (self.sampling_params.stop_token_ids or ()):
                self.stop_reason = int(token)
        elif detection is not None and ends_in_repetition(
            self.output_tokens, detection.min_pattern_size, detection.max_pattern_size, detection.min_count
        ):
            self.status = GenerationStatus.END_OF_SEQUENCE
            self.stop_reason = REPETITION
        elif tokens.current_position >= self.max_length:
            self.status = GenerationStatus.MAXIMUM_LENGTH

    def to_generation_output(self) -> TextGenerationOutput:
        """What was generated since the last call; each token and each log-probability is given out once."""
        tokens, log_probabilities = self.take_output()
        return TextGenerationOutput(
            request_id=self.request_id,
            tokens=tokens,
            final_status=self.status,
            log_probabilities=log_probabilities or None,
            num_cached_tokens=self.cached_prefix_length,
        )

    def jump_ahead(self) -> None:
        """Takes the tokens that the grammar leaves no choice about; the next step reads them all at once.

        Each is the only one that could be drawn, so that they are the tokens of single steps. Where somebody looks at
        the rows between them, or a rule may forbid one of them, they are drawn one by one.
        """
        if self.matcher is None or not self.sampling_params.may_jump_ahead:
            return
        try:
            forced = self.matcher.forced(self.output_tokens)
        except PunaError:  # told when a token is drawn
            return
        self.tokens.append_unread(forced[: self.max_length - len(self.tokens)])
        if self.tokens.current_position >= self.max_length:
            self.status = GenerationStatus.MAXIMUM_LENGTH

    def take_output(self) -> tuple[list[int], list[LogProbabilities]]:
        """The tokens and log-probabilities that were made since the last call; each is given out once."""
        pending = self._pending_log_probabilities
        if pending:
            self._pending_log_probabilities = []
        return self.tokens.consume_recently_generated_tokens().tolist(), pending

    def reset(self) -> None:
        """Make all tokens a new prompt: the cache lost them, so the model must read them again."""
        self.tokens.restart()

    def compute_num_available_steps(self, max_seq_len: int) -> int:
        """How many steps this request can take: `max_seq_len - (len(tokens) - active_length)`."""
        return max_seq_len - (len(self.tokens) - self.tokens.active_length)

    def get_min_token_logit_mask(self, num_steps: int) -> list[npt.NDArray[np.int64]]:
        """For each of the next steps the tokens that may not be chosen because `min_tokens` is not reached.

        Returns:
            `num_steps` arrays, int64 `[m]`: the end-of-sequence ids, sorted, or empty once enough was generated. Ids
            outside the vocabulary are never drawn and left out.
        """
        known = (token for token in self.eos_tracker.eos_token_ids if not self.vocab_size or token < self.vocab_size)
        ids = np.array(sorted(known), dtype=np.int64)
        missing = self.sampling_params.min_tokens - len(self.output_tokens)
        return [ids if step < missing else ids[:0] for step in range(num_steps)]


@dataclass(frozen=True, kw_only=True)
class TextGenerationInputs:
    """The requests of one turn.

    Attributes:
        batches: One list of contexts per replica.
        num_steps: Decode steps of the turn.
    """

    batches: Sequence[Sequence[TextContext]]
    num_steps: int = 1

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")

    @property
    def flat_batch(self) -> list[TextContext]:
        """All contexts, replica by replica."""
        return [context for batch in self.batches for context in batch]

    @property
    def batch_type(self) -> BatchType:
        """`CE` if any request has generated nothing yet, else `TG`."""
        return BatchType.CE if any(c.is_initial_prompt for c in self.flat_batch) else BatchType.TG

    @property
    def enable_log_probs(self) -> bool:
        """Whether any request asks for log-probabilities."""
        return any(self.batch_top_log_probs)

    @property
    def batch_top_log_probs(self) -> list[int]:
        """How many likeliest tokens each request asks for."""
        return [context.log_probabilities for context in self.flat_batch]

    @property
    def batch_echo(self) -> list[bool]:
        """Whether each request asks for the prompt's log-probabilities."""
        return [context.log_probabilities_echo for context in self.flat_batch]
