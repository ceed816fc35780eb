"""`SamplingParams`: how the tokens of a request are chosen, when it ends, and what is reported. See docs/sampling.md.

The values are checked once, when the record is made. `SamplingParamsInput` is the form in which nothing needs to be
stated: several sources, such as a request and a checkpoint's generation config, are laid over each other before the
values are final.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Final, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from puna.errors import InvalidRequestError
from puna.pipelines.filter_values import FilterValues
from puna.pipelines.ranges import require_integer, require_number
from puna.pipelines.sampling_ranges import INTEGERS, MAX_STOPS, NUMBERS
from puna.structured_output.params import StructuredOutputsParams

__all__ = [
    "LogitsProcessor",
    "LogprobsMode",
    "RepetitionDetection",
    "SamplingParams",
    "SamplingParamsInput",
]

LogitsProcessor = Callable[[npt.NDArray[np.float32], Any], None]
"""Edits a request's logits rows (float32 `[n, V]`) in place; the second argument is the request's context."""

LogprobsMode = Literal["raw", "processed"]

_MAX_IDS: Final = 1024  # of logprob_token_ids
_MAX_BIAS: Final = 100


@dataclass(frozen=True, kw_only=True)
class RepetitionDetection:
    """When a text counts as caught in a loop: it ends with `min_count` times the same tokens in a row.

    Attributes:
        max_pattern_size: Longest repeated sequence that is looked for, in tokens, 1 to 1024.
        min_pattern_size: Shortest one, 1 to `max_pattern_size`.
        min_count: How often it must stand in a row, 2 to 1024.

    Raises:
        InvalidRequestError: a value is outside its range.
    """

    max_pattern_size: int = 20
    min_pattern_size: int = 1
    min_count: int = 8

    def __post_init__(self) -> None:
        require_integer("repetition_detection.max_pattern_size", self.max_pattern_size, 1, 1024)
        require_integer("repetition_detection.min_pattern_size", self.min_pattern_size, 1, self.max_pattern_size)
        require_integer("repetition_detection.min_count", self.min_count, 2, 1024)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen, when a text ends, and what is reported, for one request.

    Temperature 0 is greedy decoding and sets `top_k` to 1; a `top_k` of 0 means all, as -1 does.

    Attributes:
        n: How many continuations of the prompt are returned, 1 to 128.
        best_of: How many are made, `n` to 128; the `n` with the highest mean log-probability per token are returned.
            None: `n`.
        max_tokens: At most this many tokens are generated, from 1; None: up to the context's end.
        min_tokens: No end of sequence before this many tokens, from 0.
        temperature: What logits are divided by, in [0, 2].
        thinking_temperature: The temperature inside the model's reasoning, in [0, 2]; None: the same. With a
            `temperature` of 0 only what comes behind the reasoning is greedy.
        top_k: Only the k likeliest tokens; -1: all.
        top_p: Only the smallest set of likeliest tokens that reaches this probability, in [0, 1].
        min_p: Only tokens at least this many times as likely as the likeliest, in [0, 1].
        typical_p: Only the most typical tokens (surprise nearest to the entropy) up to this probability, in (0, 1].
        top_n_sigma: Only logits within this many standard deviations of the largest, from 0; 0: all.
        xtc_probability: How often all but the least likely of the tokens above `xtc_threshold` are left out, in [0, 1].
        xtc_threshold: See there, in [0, 1]; above 0.5 it never happens.
        mirostat: 2 keeps the surprise near `mirostat_tau` and replaces the filters; 0: off.
        mirostat_tau: Aimed-at surprise in bits, above 0.
        mirostat_eta: Learning rate, in (0, 1].
        presence_penalty: Subtracted from the logits of tokens that were generated before, in [-2, 2].
        frequency_penalty: Subtracted once per earlier occurrence among generated tokens, in [-2, 2].
        repetition_penalty: Weakens tokens of prompt and output that occurred before; finite, above 0, 1 does nothing.
        penalty_window: The three penalties look at this many latest tokens, from 1; None: at all.
        no_repeat_ngram_size: No sequence of this many tokens occurs twice, from 0; 0: off.
        dry_multiplier: Strength of the penalty on continuing a repetition, from 0; 0: off.
        dry_base: Its growth per token of the repetition, from 1.
        dry_allowed_length: Repetitions up to this length are free, from 1.
        dry_window: Tokens that are searched for repetitions, from 1; None: all.
        dry_sequence_breakers: Tokens with one of these texts in them interrupt a repetition.
        logit_bias: Token id -> what is added to its logit, in [-100, 100].
        allowed_token_ids: Only these tokens; None: all.
        banned_token_ids: None of these tokens.
        bad_words: Texts that are not generated, as their tokens at the beginning and within a text.
        ignore_eos: End-of-sequence tokens do not end the request (stop strings still do).
        stop: Up to 16 strings that end the text.
        stop_token_ids: Further tokens that end the request.
        include_stop_str_in_output: The text keeps the stop string.
        repetition_detection: When a text counts as caught in a loop, and ends; None: never.
        deadline_s: Seconds from the request's arrival after which it ends with what it has, above 0; None: never.
        seed: Start of the random numbers, 0 to 2**64 - 1; None: drawn anew for each request, and reported.
        logprobs: Log-probabilities of each token and of this many likeliest ones, 0 to 20; None: none.
        prompt_logprobs: The same for the prompt's tokens.
        logprob_token_ids: Up to 1024 tokens that are reported at each position too.
        logprobs_mode: `raw`: of the model's logits; `processed`: of what the draw was made from.
        structured_outputs: What the text must look like, such as a JSON schema; None: anything. The text ends where
            that lets it, so that `stop`, `repetition_detection` and `ignore_eos` do not go together with it (the first
            two do with a `structural_tag`).
        logits_processors: Functions that edit the request's logits before everything else, in order.
        truncate_prompt_tokens: Only this many last tokens of the prompt, from 1, or -1 for as many as the context
            holds; None: a prompt that is too long is refused.
        detokenize: Whether text is made of the tokens. Without text there are no stop strings.
        skip_special_tokens: The text leaves control tokens out.

    Raises:
        InvalidRequestError: a value is outside its range (`param` names it).
    """

    n: int = 1
    best_of: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    thinking_temperature: float | None = None
    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    penalty_window: int | None = None
    no_repeat_ngram_size: int = 0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_window: int | None = None
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    allowed_token_ids: Sequence[int] | None = None
    banned_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    ignore_eos: bool = False
    stop: Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    include_stop_str_in_output: bool = False
    repetition_detection: RepetitionDetection | None = None
    deadline_s: float | None = None
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: Sequence[int] | None = None
    logprobs_mode: LogprobsMode = "raw"
    structured_outputs: StructuredOutputsParams | None = None
    logits_processors: Sequence[LogitsProcessor] | None = None
    truncate_prompt_tokens: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        for name, (low, high) in INTEGERS.items():
            value = getattr(self, name)
            if value is not None or name in _NEVER_NONE:
                require_integer(name, value, low, high)
        for name, (lowest, highest, is_open) in NUMBERS.items():
            value = getattr(self, name)
            if value is not None or name in _NEVER_NONE:
                require_number(name, value, lowest, highest, is_open)
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequestError(f"must be true or false, got {getattr(self, name)!r}", param=name)
        for name in _ID_LISTS:
            self._set_ids(name)
        for name in ("stop", "bad_words", "dry_sequence_breakers"):
            self._set_texts(name)
        self._set_bias()
        self._check_kinds()
        self._check_together()
        if self.temperature == 0:
            object.__setattr__(self, "top_k", 1)
        elif self.top_k == 0:
            object.__setattr__(self, "top_k", -1)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken, always."""
        return self.top_k == 1

    @cached_property
    def while_thinking(self) -> SamplingParams:
        """How a token of the model's reasoning is drawn."""
        if self.thinking_temperature is None:
            return self
        top_k = -1 if self.temperature == 0 else self.top_k  # that 1 is the temperature's
        return replace(
            self, temperature=self.thinking_temperature, thinking_temperature=None, top_k=top_k, n=1, best_of=None
        )

    @property
    def num_choices(self) -> int:
        """How many continuations are made."""
        return self.n if self.best_of is None else self.best_of

    @cached_property
    def has_filters(self) -> bool:
        """Whether a draw leaves tokens out because of how likely they are."""
        return bool(
            self.top_k > 0
            or self.top_p < 1
            or self.min_p > 0
            or self.typical_p < 1
            or self.top_n_sigma > 0
            or self.xtc_probability > 0
            or self.mirostat
        )

    @cached_property
    def filter_values(self) -> FilterValues:
        """Temperature and filters as numbers. Mirostat stands alone, so other filters do nothing beside it."""
        if self.mirostat:
            return FilterValues(temperature=self.temperature, mirostat=1.0)
        return FilterValues(
            self.temperature,
            self.top_k,
            self.top_p,
            self.min_p,
            self.typical_p,
            self.top_n_sigma,
            self.xtc_probability,
            self.xtc_threshold,
        )

    @cached_property
    def has_penalties(self) -> bool:
        """Whether tokens are weakened because they occurred before."""
        return bool(self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0)

    @cached_property
    def edits_logits(self) -> bool:
        """Whether these values change logits before a draw."""
        return bool(
            self.has_penalties
            or self.logit_bias
            or self.allowed_token_ids is not None
            or self.banned_token_ids
            or self.dry_multiplier > 0
            or self.no_repeat_ngram_size > 0
        )

    @cached_property
    def may_jump_ahead(self) -> bool:
        """Whether the only token that a grammar allows need not be drawn: nothing looks at it or forbids it."""
        looks = (self.logprobs is not None, self.logits_processors, self.mirostat, self.repetition_detection)
        forbids = (self.allowed_token_ids is not None, self.banned_token_ids, self.bad_words, self.no_repeat_ngram_size)
        return not any((*looks, *forbids))

    @property
    def reports_processed(self) -> bool:
        """Whether log-probabilities of what the draw was made from are reported."""
        return self.logprobs is not None and self.logprobs_mode == "processed"

    @classmethod
    def from_input(
        cls,
        request: SamplingParamsInput | None = None,
        defaults: SamplingParamsInput | None = None,
    ) -> SamplingParams:
        """The final values: what the request states, else what `defaults` states, else those of this class.

        A request that states a temperature above 0 and no `top_k` is not bound to a default's greedy `top_k` of 1.
        """
        stated = (request or SamplingParamsInput()).stated()
        below = (defaults or SamplingParamsInput()).stated()
        values = below | stated
        if stated.get("temperature", 0) != 0 and "top_k" not in stated and below.get("temperature") == 0:
            values.pop("top_k", None)
        return cls(**values)

    def _set_ids(self, name: str) -> None:
        ids = getattr(self, name)
        if ids is None:
            return
        if isinstance(ids, str) or not isinstance(ids, Sequence | set | frozenset | np.ndarray):
            raise InvalidRequestError(f"must be a list of token ids, got {ids!r}", param=name)
        for token in ids:
            require_integer(name, token, 0, None)
        if name == "allowed_token_ids" and not len(ids):
            raise InvalidRequestError("must not be empty: nothing could be generated", param=name)
        if name == "logprob_token_ids" and len(ids) > _MAX_IDS:
            raise InvalidRequestError(f"at most {_MAX_IDS} ids, got {len(ids)}", param=name)
        object.__setattr__(self, name, tuple(int(token) for token in ids))

    def _set_texts(self, name: str) -> None:
        texts = getattr(self, name)
        if texts is None:
            return
        texts = (texts,) if isinstance(texts, str) else tuple(texts)
        if not all(isinstance(text, str) and text for text in texts):
            raise InvalidRequestError("must be strings that are not empty", param=name)
        if name == "stop" and len(texts) > MAX_STOPS:
            raise InvalidRequestError(f"at most {MAX_STOPS} strings, got {len(texts)}", param=name)
        object.__setattr__(self, name, texts)

    def _set_bias(self) -> None:
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, Mapping):
            raise InvalidRequestError(f"must map token ids to numbers, got {self.logit_bias!r}", param="logit_bias")
        for token, value in self.logit_bias.items():
            require_integer("logit_bias", token, 0, None)
            require_number("logit_bias", value, -_MAX_BIAS, _MAX_BIAS, False)
        object.__setattr__(self, "logit_bias", {int(token): float(v) for token, v in self.logit_bias.items()})

    def _check_kinds(self) -> None:
        if self.mirostat not in (0, 2):
            raise InvalidRequestError(f"must be 0 or 2, got {self.mirostat}", param="mirostat")
        if self.logprobs_mode not in get_args(LogprobsMode):
            expected = " or ".join(get_args(LogprobsMode))
            raise InvalidRequestError(f"must be {expected}, got {self.logprobs_mode!r}", param="logprobs_mode")
        if self.truncate_prompt_tokens == 0:
            raise InvalidRequestError("must be at least 1, or -1, got 0", param="truncate_prompt_tokens")
        detection = cast(object, self.repetition_detection)
        if detection is not None and not isinstance(detection, RepetitionDetection):
            raise InvalidRequestError(f"must be a RepetitionDetection, got {detection!r}", param="repetition_detection")
        outputs = cast(object, self.structured_outputs)
        if outputs is not None and not isinstance(outputs, StructuredOutputsParams):
            raise InvalidRequestError(f"must be StructuredOutputsParams, got {outputs!r}", param="structured_outputs")
        if self.logits_processors is not None:
            if not all(callable(process) for process in self.logits_processors):
                raise InvalidRequestError("must be functions", param="logits_processors")
            object.__setattr__(self, "logits_processors", tuple(self.logits_processors))

    def _check_together(self) -> None:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(f"{self.min_tokens} is above max_tokens ({self.max_tokens})", param="min_tokens")
        if self.best_of is not None and self.best_of < self.n:
            raise InvalidRequestError(f"{self.best_of} is below n ({self.n})", param="best_of")
        is_greedy = not self.thinking_temperature if self.temperature == 0 else self.top_k == 1
        if self.num_choices > 1 and is_greedy:
            raise InvalidRequestError(
                f"{self.num_choices} greedy continuations would be equal; sample, or ask for one",
                param="n" if self.best_of is None else "best_of",
            )
        if self.stop and not self.detokenize:
            raise InvalidRequestError("stop strings are looked for in text, and detokenize is off", param="stop")
        if self.structured_outputs is not None:
            self._check_with_grammar(self.structured_outputs)
        if self.logprob_token_ids and self.logprobs is None and self.prompt_logprobs is None:
            raise InvalidRequestError("needs logprobs or prompt_logprobs", param="logprob_token_ids")

    def _check_with_grammar(self, outputs: StructuredOutputsParams) -> None:
        """Refuses what would end a text where its grammar does not, or keep it from ending."""
        cutting = ["ignore_eos"]
        if outputs.kind != "structural_tag":  # what stands between tags may end anywhere
            cutting += ["stop", "repetition_detection"]
        for name in cutting:
            if getattr(self, name):
                raise InvalidRequestError(
                    f"does not go together with {outputs.param}, which says where the text ends", param=name
                )


class SamplingParamsInput:
    """Sampling values as far as somebody stated them: `SamplingParamsInput(temperature=0.6, top_p=None)` states one.

    Its fields are those of `SamplingParams`; reading one that was not stated gives None.

    Raises:
        InvalidRequestError: there is no such field.
    """

    __slots__ = ("_values",)

    def __init__(self, **values: Any) -> None:
        for name in values:
            if name not in _FIELD_NAMES:
                closest = difflib.get_close_matches(name, _FIELD_NAMES, 1)
                hint = f"; is {closest[0]} meant?" if closest else ""
                raise InvalidRequestError(f"there is no such sampling value{hint}", param=name)
        self._values = {name: value for name, value in values.items() if value is not None}

    def stated(self) -> dict[str, Any]:
        """The fields that were stated."""
        return dict(self._values)

    def over(self, below: SamplingParamsInput) -> SamplingParamsInput:
        """These values, with `below` where this one states nothing."""
        return SamplingParamsInput(**(below._values | self._values))

    def __getattr__(self, name: str) -> Any:
        if name not in _FIELD_NAMES:
            raise AttributeError(f"there is no sampling value {name!r}")
        return self._values.get(name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SamplingParamsInput) and self._values == other._values

    def __hash__(self) -> int:
        return hash(tuple(self._values))

    def __repr__(self) -> str:
        return f"SamplingParamsInput({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"

    def __getstate__(self) -> dict[str, Any]:
        return self._values

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._values = state


_FIELD_NAMES: Final = tuple(f.name for f in fields(SamplingParams))
_SWITCHES: Final = ("ignore_eos", "include_stop_str_in_output", "detokenize", "skip_special_tokens")
_ID_LISTS: Final = ("allowed_token_ids", "banned_token_ids", "stop_token_ids", "logprob_token_ids")
_NEVER_NONE: Final = frozenset(f.name for f in fields(SamplingParams) if f.default is not None)
