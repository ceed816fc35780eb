"""From what a user gives to what the loop takes: prompts of every form become tokens, tokens contexts."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Final, TypeAlias, cast

import numpy as np

from puna.entrypoints.answer import Answer
from puna.entrypoints.conversation import Conversations, Reading, for_template
from puna.entrypoints.loading import LoadedModel
from puna.errors import InvalidRequestError, PromptTooLongError, UnsupportedModelError
from puna.pipelines.context import EOSTracker, TextContext, TokenBuffer
from puna.pipelines.lora import LoRAAdapter, LoRAManager
from puna.pipelines.prompt_reading import LogprobReader
from puna.pipelines.prompt_rows import PromptReader
from puna.pipelines.request import GenerateRequest
from puna.pipelines.sampling_params import SamplingParams
from puna.pipelines.thinking import ThinkingSection
from puna.structured_output import ConstraintState, GrammarCompiler, Vocabulary
from puna.tokenization import Tokenizer

__all__ = ["AdapterNames", "Message", "Preparation", "Prompt", "Rendered", "as_requests"]

Message: TypeAlias = Mapping[str, Any]
Prompt: TypeAlias = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, `{"prompt": text}` or `{"prompt_token_ids": ids}`."""

AdapterNames: TypeAlias = str | Sequence[str | None] | None
"""The name of an adapter, or None for the model itself: for all prompts, or one each."""

_SEED_BITS: Final = 32
_PROMPT_KEYS: Final = ("prompt", "prompt_token_ids")


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a conversation looks like to the model.

    Attributes:
        text: The prompt's text, special tokens spelled out.
        token_ids: The prompt's tokens.
    """

    text: str
    token_ids: tuple[int, ...]


def as_requests(
    prompts: Prompt | Sequence[Prompt],
    params: SamplingParams | Sequence[SamplingParams],
    adapter: AdapterNames = None,
) -> list[GenerateRequest]:
    """One request per prompt, with one set of values for all or one each, and one adapter for all or one each.

    Raises:
        InvalidRequestError: a prompt is of no known form, or there are not as many values or adapters as prompts.
    """
    is_one = isinstance(prompts, str | Mapping) or _is_ids(prompts)
    if not is_one and not isinstance(prompts, Iterable):
        raise InvalidRequestError(f"expected text or token ids, got {type(prompts).__name__}", param="prompt")
    many = [cast(Prompt, prompts)] if is_one else list(cast(Sequence[Prompt], prompts))
    return [
        GenerateRequest(**_prompt_form(prompt), sampling_params=values, adapter=name)
        for prompt, values, name in zip(
            many, spread(params, len(many)), spread_adapters(adapter, len(many)), strict=True
        )
    ]


def spread(params: SamplingParams | Sequence[SamplingParams], count: int) -> list[SamplingParams]:
    """One set of values per prompt.

    Raises:
        InvalidRequestError: there are not as many as prompts.
    """
    if isinstance(params, SamplingParams):
        return [params] * count
    if len(params) != count:
        raise InvalidRequestError(f"{len(params)} sets of values for {count} prompts", param="sampling_params")
    return list(params)


def spread_adapters(adapter: AdapterNames, count: int) -> list[str | None]:
    """The name of an adapter, or None, for each prompt.

    Raises:
        InvalidRequestError: there are not as many as prompts.
    """
    if adapter is None or isinstance(adapter, str):
        return [adapter] * count
    if len(adapter) != count:
        raise InvalidRequestError(f"{len(adapter)} names for {count} prompts", param="adapter")
    return list(adapter)


def _prompt_form(prompt: Prompt) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"text": prompt}
    if isinstance(prompt, Mapping):
        if len(prompt) != 1 or next(iter(prompt)) not in _PROMPT_KEYS:
            expected = " or ".join(_PROMPT_KEYS)
            raise InvalidRequestError(f"an object with {expected} is expected, got {sorted(prompt)}", param="prompt")
        return _prompt_form(next(iter(prompt.values())))
    if not _is_ids(prompt):
        raise InvalidRequestError(f"expected text or token ids, got {type(prompt).__name__}", param="prompt")
    return {"token_ids": [int(token) for token in prompt]}


def _up_to_message(text: str, content: object) -> str:
    """A rendered conversation as far as the end of its last message."""
    said = content.strip() if isinstance(content, str) else ""  # templates strip messages
    begin = text.rfind(said) if said else -1
    if begin < 0:
        raise InvalidRequestError("the last message has no text that can be continued", param="continue_final_message")
    return text[: begin + len(said)]


def _is_ids(prompt: object) -> bool:
    if isinstance(prompt, np.ndarray):
        return prompt.ndim == 1 and np.issubdtype(prompt.dtype, np.integer)
    return isinstance(prompt, Sequence) and len(prompt) > 0 and all(isinstance(t, int | np.integer) for t in prompt)


class Preparation:
    """Makes contexts for one loaded model. Safe to use from several threads.

    Args:
        loaded: The model.
        seed: What the seeds of requests without one are drawn from; None: from the system.
    """

    def __init__(self, loaded: LoadedModel, seed: int | None) -> None:
        self._loaded = loaded
        self._random = random.Random(seed) if seed is not None else None
        # Rows beyond the tokenizer are padding; tokens beyond the rows cannot be read.
        rows = int(loaded.model.config.vocab_size)
        self.vocab_size = min(self.tokenizer.vocab_size, rows) if self.has_tokenizer else rows
        self._grammars = GrammarCompiler(self._vocabulary)
        self._dry_breakers = lru_cache(maxsize=16)(self._find_dry_breakers)

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be given and got; else there are only token ids."""
        return isinstance(self._loaded.tokenizer, Tokenizer)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            UnsupportedModelError: it has none, or one of a kind that is not implemented.
        """
        if isinstance(self._loaded.tokenizer, Tokenizer):
            return self._loaded.tokenizer
        raise self._loaded.tokenizer

    def render(
        self, messages: Sequence[Message], *, continue_final_message: bool = False, **options: Any
    ) -> Rendered:
        """A conversation through the chat template; further options are those of `ChatTemplate.render`.

        Args:
            messages: The conversation.
            continue_final_message: The text ends where the last message does, so that the model goes on with it.
            options: See above.

        Raises:
            UnsupportedModelError: the model has no chat template.
            InvalidRequestError: the template refuses the messages.
        """
        template = self.tokenizer.chat_template
        if template is None:
            raise UnsupportedModelError(
                "chat template", None, file=self._loaded.name, supported="a plain prompt, or a template of your own"
            )
        text = template.render(messages, **options)
        if continue_final_message:
            text = _up_to_message(text, messages[-1].get("content"))
        return Rendered(text, tuple(self.tokenizer.encode(text, add_special_tokens=False)))

    def encode(self, request: GenerateRequest) -> tuple[str | None, list[int]]:
        """The prompt's text, where there is one, and its tokens.

        Raises:
            UnsupportedModelError: messages were given and the model has no chat template, or text and no tokenizer.
            InvalidRequestError: the prompt is empty, or holds what is no text or no token.
        """
        if request.token_ids is not None:
            text, ids = None, [int(token) for token in request.token_ids]
            largest = max(ids, default=0)
            if largest >= self.vocab_size:  # here: it may be larger than an array can hold
                raise InvalidRequestError(
                    f"token {largest} is outside the vocabulary of {self.vocab_size}", param="prompt"
                )
        elif request.messages is not None:
            options = dict(request.chat_template_kwargs)
            if request.tools and request.tool_choice != "none":  # what may not be called is not spoken of
                options["tools"] = request.tools
            rendered = self.render(for_template(request.messages), **options)
            text, ids = rendered.text, list(rendered.token_ids)
        else:
            text = request.text or ""
            ids = self.tokenizer.encode(text)
        if not ids:
            raise InvalidRequestError("is empty, and this model has no token that begins a text", param="prompt")
        return text, ids

    def answer(self, request: GenerateRequest) -> Answer:
        """The request's contexts, and the answer that their tokens are collected in.

        Raises:
            InvalidRequestError: the prompt does not fit, the request names another model or asks for text without a
                tokenizer.
            UnsupportedModelError: as `encode`.
        """
        params = request.sampling_params
        adapter = self.adapter(request.adapter, request.model_name)
        for name in ("stop", "bad_words", "structured_outputs"):
            if getattr(params, name) and not self.has_tokenizer:
                raise InvalidRequestError("needs a tokenizer, and this model has none", param=name)
        text, ids = self.encode(request)
        num_truncated = self._num_truncated(params, len(ids))
        ids = ids[num_truncated:]
        reading = None
        if request.messages is not None and text is not None:
            reading = self._conversations.read(request, text)
        elif request.tools:
            raise InvalidRequestError("are for conversations", param="tools")
        context = self._context(request, ids, adapter, self._matcher(params, reading))
        if params.thinking_temperature is not None:
            context.thinking = self._thinking(ids, text if request.messages is not None else None)
        # An answer is a text of its own; a continuation goes on where the prompt ends.
        return Answer(
            context,
            self.tokenizer if self.has_tokenizer else None,
            [] if request.messages is not None else ids,
            reading=reading,
            prompt=text,
            num_truncated_tokens=num_truncated,
            num_returned=params.n,
            reports_logprobs=params.logprobs is not None,
        )

    def adapter(self, name: str | None, model_name: str | None = None) -> LoRAAdapter | None:
        """The adapter that a request names.

        Args:
            name: Its name, or None.
            model_name: What the request calls the model; the name of an adapter means that adapter.

        Raises:
            InvalidRequestError: the model was loaded without adapters, the model's name is neither its own nor an
                adapter's, or two adapters are named.
            AdapterNotFoundError: there is no such adapter.
        """
        manager: LoRAManager | None = self._loaded.model.lora_manager
        if model_name not in (None, self._loaded.name):
            known = [] if manager is None else [info.name for info in manager.adapters()]
            if model_name not in known:
                there = ", ".join([self._loaded.name, *known])
                raise InvalidRequestError(f"{model_name!r} is not loaded; there is: {there}", param="model")
            if name not in (None, model_name):
                raise InvalidRequestError(f"{name!r} is not {model_name!r}, which the model names", param="adapter")
            name = model_name
        if name is None:
            return None
        if manager is None:
            raise InvalidRequestError("the model was loaded without adapters (enable_lora)", param="adapter")
        return manager.find(name)

    def root(self, ids: Sequence[int], adapter: str | None = None) -> TextContext:
        """A context that goes on as long as it may, after all others: what they fork from."""
        params = SamplingParams(temperature=0, ignore_eos=True, detokenize=False)
        return TextContext(
            tokens=TokenBuffer(np.array(ids, dtype=np.int64)),
            max_length=self._loaded.max_model_len,
            sampling_params=params,
            vocab_size=self.vocab_size,
            adapter=self.adapter(adapter),
            priority=1,
        )

    def reading(self, ids: Sequence[int], reader: PromptReader, adapter: str | None = None) -> TextContext:
        """A context that ends when its prompt is read.

        Raises:
            InvalidRequestError: the prompt is empty or does not fit, or as `adapter`.
        """
        if not len(ids):
            raise InvalidRequestError("is empty", param="prompt")
        limit = self._loaded.max_model_len
        if len(ids) > limit:
            raise PromptTooLongError(len(ids), limit, f"the context holds ({limit})")
        return TextContext(
            tokens=TokenBuffer(np.array(ids, dtype=np.int64)),
            max_length=len(ids),
            reader=reader,
            is_read_only=True,
            vocab_size=self.vocab_size,
            adapter=self.adapter(adapter),
        )

    def _context(
        self,
        request: GenerateRequest,
        ids: list[int],
        adapter: LoRAAdapter | None,
        matcher: ConstraintState | None,
    ) -> TextContext:
        loaded, params = self._loaded, request.sampling_params
        room = loaded.max_model_len - len(ids)
        if room < 1:
            raise PromptTooLongError(
                len(ids),
                loaded.max_model_len - 1,
                f"the context of {loaded.max_model_len} tokens leaves room for",
                "truncate_prompt_tokens would cut it",
            )
        tokens = np.array(ids, dtype=np.int64)
        if params.num_choices > params.n and params.logprobs is None:
            params = replace(params, logprobs=0)  # the likeliest are returned
        ends = self.tokenizer.eos_token_ids if self.has_tokenizer else ()
        tracker = EOSTracker(frozenset(ends) | frozenset(params.stop_token_ids or ()))
        reader = None
        if params.prompt_logprobs is not None:
            reader = LogprobReader(tokens, params.prompt_logprobs, params.logprob_token_ids or ())
        return TextContext(
            tokens=TokenBuffer(tokens),
            max_length=len(ids) + min(room, params.max_tokens or room),
            request_id=request.request_id,
            eos_tracker=tracker,
            sampling_params=params,
            model_name=request.model_name,
            adapter=adapter,
            vocab_size=self.vocab_size,
            num_choices=params.num_choices,
            deadline=None if params.deadline_s is None else time.monotonic() + params.deadline_s,
            priority=request.priority,
            cache_salt=request.cache_salt,
            seed=self._seed(params),
            reader=reader,
            matcher=matcher,
            bad_words=self._bad_words(params),
            dry_breakers=self._breakers(params),
        )

    @cached_property
    def _conversations(self) -> Conversations:
        template = self.tokenizer.chat_template
        assert template is not None  # callers looked
        return Conversations(self.tokenizer, template)

    def _thinking(self, ids: Sequence[int], rendered: str | None) -> ThinkingSection:
        has_template = self.has_tokenizer and self.tokenizer.chat_template is not None
        found = self._conversations.thinking(ids, rendered) if has_template else None
        if found is None:
            raise InvalidRequestError(
                "needs a chat template that marks the model's reasoning with one token at each end, as <think> and "
                "</think>",
                param="thinking_temperature",
            )
        return found

    def _matcher(self, params: SamplingParams, reading: Reading | None) -> ConstraintState | None:
        """The beginning of the grammar that a request states."""
        outputs = params.structured_outputs
        constraint = None
        if outputs is not None:  # by itself, even if it will be a part: that tells where it can't be compiled
            constraint = self._grammars.compile(outputs)
        if reading is not None and reading.grammar is not None:
            constraint = self._grammars.compile_grammar(reading.grammar, reading.param)
        if constraint is None:
            return None
        for token in params.stop_token_ids or ():
            if token not in self.tokenizer.special_token_ids:
                raise InvalidRequestError(
                    f"{token} is no control token; under a grammar it would add to the text that it ends",
                    param="stop_token_ids",
                )
        return constraint.begin()

    def _vocabulary(self) -> Vocabulary:
        tokenizer = self.tokenizer
        return Vocabulary(
            self.vocab_size,
            tokenizer.token_bytes,
            tokenizer.special_token_ids.__contains__,
            tokenizer.eos_token_ids,
            lambda text: tokenizer.encode(text, add_special_tokens=False),
        )

    def _num_truncated(self, params: SamplingParams, length: int) -> int:
        """How many tokens are cut off the beginning of a prompt."""
        keep = params.truncate_prompt_tokens
        if keep is None:
            return 0
        if keep == -1:
            keep = max(1, self._loaded.max_model_len - (params.max_tokens or 1))
        return max(0, length - keep)

    def _seed(self, params: SamplingParams) -> int:
        if params.seed is not None:
            return params.seed
        return secrets.randbits(_SEED_BITS) if self._random is None else self._random.getrandbits(_SEED_BITS)

    def _bad_words(self, params: SamplingParams) -> tuple[tuple[int, ...], ...]:
        """The tokens of the bad words, at the beginning of a text and behind a space."""
        found = set()
        for word in params.bad_words or ():
            for spelling in (word, f" {word.lstrip()}"):
                found.add(tuple(self.tokenizer.encode(spelling, add_special_tokens=False)))
        return tuple(sorted(found - {()}))

    def _breakers(self, params: SamplingParams) -> frozenset[int]:
        if params.dry_multiplier == 0 or not self.has_tokenizer:
            return frozenset()
        return self._dry_breakers(tuple(params.dry_sequence_breakers))

    def _find_dry_breakers(self, texts: tuple[str, ...]) -> frozenset[int]:
        parts = [text.encode() for text in texts]
        pieces = ((token, self.tokenizer.token_bytes(token)) for token in range(self.vocab_size))
        return frozenset(token for token, piece in pieces if any(part in piece for part in parts))
