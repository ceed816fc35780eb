"""What a user asks for: the request, its identity, and how tokens are to be chosen.

`SamplingParams` is checked once, when it is made. `SamplingParamsInput` is its all-optional form: several sources,
such as a request and a checkpoint's generation config, are laid over each other before the values are final.
"""

from __future__ import annotations

import math
import secrets
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, NewType

import numpy as np
import numpy.typing as npt

from puna.errors import InvalidRequestError

__all__ = [
    "GenerateRequest",
    "LogitsProcessor",
    "RequestID",
    "SamplingParams",
    "SamplingParamsInput",
    "new_request_id",
]

RequestID = NewType("RequestID", str)
"""Opaque name of a request, unique within a process and across restarts."""

LogitsProcessor = Callable[[npt.NDArray[np.float32], Any], None]
"""Edits a request's logits rows (float32 `[n, V]`) in place; the second argument is the request's context."""

_SEED_BITS: Final = 32
_MAX_SEED: Final = (1 << 64) - 1


def new_request_id() -> RequestID:
    """A fresh identity."""
    return RequestID(uuid.uuid4().hex)


@dataclass(frozen=True, kw_only=True)
class SamplingParamsInput:
    """Sampling values as far as somebody stated them (None: not stated). The fields are those of `SamplingParams`."""

    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    temperature: float | None = None
    thinking_temperature: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    ignore_eos: bool | None = None
    stop: Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    detokenize: bool | None = None
    seed: int | None = None
    logits_processors: Sequence[LogitsProcessor] | None = None

    def stated(self) -> dict[str, Any]:
        """The fields that are not None."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def over(self, below: SamplingParamsInput) -> SamplingParamsInput:
        """These values, with `below` where this one states nothing."""
        return SamplingParamsInput(**(below.stated() | self.stated()))


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen, for one request.

    Temperature 0 is greedy decoding and sets `top_k` to 1; a `top_k` of 0 means all, as -1 does.

    Attributes:
        top_k: Only the k likeliest tokens; -1: all.
        top_p: Only the smallest set of likeliest tokens that reaches this probability, in [0, 1].
        min_p: Only tokens at least this many times as likely as the likeliest, in [0, 1].
        temperature: What logits are divided by, in [0, 2].
        thinking_temperature: The temperature inside a reasoning section, in [0, 2]; None: the same.
        frequency_penalty: Subtracted once per earlier occurrence among generated tokens, in [-2, 2].
        presence_penalty: Subtracted from tokens that were generated before, in [-2, 2].
        repetition_penalty: Weakens tokens of prompt and output that occurred before; finite, above 0, 1 does nothing.
        max_new_tokens: At most this many tokens are generated; None: up to the context's end.
        min_new_tokens: No end of sequence before this many tokens.
        ignore_eos: End-of-sequence tokens do not end the request (stop strings still do).
        stop: Strings that end the text; they are cut off.
        stop_token_ids: Further tokens that end the request.
        detokenize: Whether text is made of the tokens. Without text there are no stop strings.
        seed: Start of the request's random numbers, 0 to 2**64 - 1. Drawn at random unless given.
        logits_processors: Functions that edit the request's logits before everything else, in order.

    Raises:
        InvalidRequestError: a value is outside its range (`param` names it).
    """

    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0
    temperature: float = 1.0
    thinking_temperature: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] | None = None
    stop_token_ids: tuple[int, ...] | None = None
    detokenize: bool = True
    seed: int = field(default_factory=lambda: secrets.randbits(_SEED_BITS))
    logits_processors: tuple[LogitsProcessor, ...] | None = None

    def __post_init__(self) -> None:
        self._check_integers()
        self._check_ranges()
        self._check_stops()
        if self.temperature == 0:
            object.__setattr__(self, "top_k", 1)
        elif self.top_k == 0:
            object.__setattr__(self, "top_k", -1)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken, always."""
        return self.top_k == 1

    @classmethod
    def from_input(
        cls,
        request: SamplingParamsInput | None = None,
        defaults: SamplingParamsInput | None = None,
    ) -> SamplingParams:
        """The final values: what the request states, else what `defaults` states, else those of this class.

        A request that states a temperature above 0 and no `top_k` is not bound to a default's greedy `top_k` of 1.
        """
        request = request or SamplingParamsInput()
        defaults = defaults or SamplingParamsInput()
        values = request.over(defaults).stated()
        asks_for_sampling = request.temperature is not None and request.temperature > 0 and request.top_k is None
        if asks_for_sampling and defaults.temperature == 0 and defaults.top_k == 1:
            values.pop("top_k", None)
        return cls(**values)

    def _check_integers(self) -> None:
        _require_integer("top_k", self.top_k, -1, None)
        _require_integer("min_new_tokens", self.min_new_tokens, 0, None)
        if self.max_new_tokens is not None:
            _require_integer("max_new_tokens", self.max_new_tokens, 1, None)
            if self.min_new_tokens > self.max_new_tokens:
                raise InvalidRequestError(
                    f"{self.min_new_tokens} is above max_new_tokens ({self.max_new_tokens})", param="min_new_tokens"
                )
        _require_integer("seed", self.seed, 0, _MAX_SEED)

    def _check_ranges(self) -> None:
        _require_number("top_p", self.top_p, 0, 1)
        _require_number("min_p", self.min_p, 0, 1)
        _require_number("temperature", self.temperature, 0, 2)
        if self.thinking_temperature is not None:
            _require_number("thinking_temperature", self.thinking_temperature, 0, 2)
        _require_number("frequency_penalty", self.frequency_penalty, -2, 2)
        _require_number("presence_penalty", self.presence_penalty, -2, 2)
        _require_number("repetition_penalty", self.repetition_penalty, -math.inf, math.inf)
        if self.repetition_penalty <= 0:
            raise InvalidRequestError(f"must be above 0, got {self.repetition_penalty}", param="repetition_penalty")

    def _check_stops(self) -> None:
        stop: object = self.stop
        if stop is not None:
            texts = (stop,) if isinstance(stop, str) else tuple(self.stop or ())
            if not all(isinstance(text, str) and text for text in texts):
                raise InvalidRequestError("must be strings that are not empty", param="stop")
            if texts and not self.detokenize:
                raise InvalidRequestError("stop strings are looked for in text, and detokenize is off", param="stop")
            object.__setattr__(self, "stop", texts)
        if self.stop_token_ids is not None:
            for token in self.stop_token_ids:
                _require_integer("stop_token_ids", token, 0, None)
            object.__setattr__(self, "stop_token_ids", tuple(int(token) for token in self.stop_token_ids))
        if self.logits_processors is not None:
            object.__setattr__(self, "logits_processors", tuple(self.logits_processors))


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """What an entrypoint passes on: a prompt in exactly one of three forms, and how to answer it.

    Attributes:
        text: A prompt as it is.
        messages: A conversation, for the chat template.
        token_ids: A prompt that is tokenized already.
        sampling_params: How tokens are chosen.
        model_name: The name the client used: the model, or an adapter of it. None: the model.
        request_id: Identity of the request.
        chat_template_kwargs: Further variables of the chat template.
        logprobs: How many likeliest tokens to report with each token; 0: none.
        echo: Whether log-probabilities of the prompt are reported too.

    Raises:
        InvalidRequestError: not exactly one form of prompt, or a value out of range.
    """

    text: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    token_ids: Sequence[int] | None = None
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    model_name: str | None = None
    request_id: RequestID = field(default_factory=new_request_id)
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    logprobs: int = 0
    echo: bool = False

    def __post_init__(self) -> None:
        forms = {"text": self.text, "messages": self.messages, "token_ids": self.token_ids}
        given = [name for name, value in forms.items() if value is not None]
        if len(given) != 1:
            expected = ", ".join(forms)
            raise InvalidRequestError(f"exactly one of {expected} is needed, got {given or 'none'}", param="prompt")
        if not forms[given[0]] and given[0] != "text":
            raise InvalidRequestError("must not be empty", param=given[0])
        _require_integer("logprobs", self.logprobs, 0, None)


def _require_integer(name: str, value: object, low: int, high: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InvalidRequestError(f"must be an integer, got {value!r}", param=name)
    if value < low or (high is not None and value > high):
        expected = f"at least {low}" if high is None else f"from {low} to {high}"
        raise InvalidRequestError(f"must be {expected}, got {value}", param=name)


def _require_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise InvalidRequestError(f"must be a number, got {value!r}", param=name)
    if not (math.isfinite(value) and low <= value <= high):
        expected = "finite" if math.isinf(low) else f"from {low} to {high}"
        raise InvalidRequestError(f"must be {expected}, got {value}", param=name)
