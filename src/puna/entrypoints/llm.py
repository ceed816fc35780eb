"""`LLM`: a loaded model for one process. See docs/python.md."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt

from puna.entrypoints.answer import Answer
from puna.entrypoints.beam_search import search
from puna.entrypoints.loading import EngineOptions, GenerationConfig, Precision, kernel_variant, load_model
from puna.entrypoints.loop_driver import LoopDriver
from puna.entrypoints.outputs import BeamSearchOutput, ChoiceScore, RequestOutput
from puna.entrypoints.preparation import Message, Preparation, Prompt, Rendered, as_requests, spread
from puna.errors import InvalidRequestError
from puna.models import DEFAULT_MODEL
from puna.pipelines.prompt_reading import HiddenStateReader, LogitReader, LogprobReader, Pooling, PoolingReader
from puna.pipelines.request import GenerateRequest
from puna.pipelines.sampling_params import BeamSearchParams, SamplingParams, SamplingParamsInput
from puna.pipelines.text_generation import TextGenerationPipeline
from puna.tokenization import Tokenizer

__all__ = ["LLM", "kernel_variant"]

_T = TypeVar("_T")
_SCORED_TOGETHER: Final = 32


class LLM:
    """A loaded model that answers requests.

    Several threads may use it at once; their requests share its steps. A request's result does not depend on what
    runs beside it.

    Args:
        model: A `.gguf` file, a directory, a name on the hub, or `smollm2`.
        dtype: `auto`: products take activations of 8 bits where the weights' format has integer kernels; `float32`:
            every product takes float32 activations.
        kv_cache_dtype: Element type of cached keys and values: `float32`, `float16`, `bfloat16`, or `auto` (float16).
        max_model_len: Most tokens of a request, prompt and output; None: what the model and the memory allow.
        max_num_seqs: Sequences in a step, from 1.
        max_num_batched_tokens: Tokens in a step, over all sequences; a longer prompt is read in several steps.
        max_num_steps: Forward passes between two decisions of the scheduler.
        kv_cache_memory: Bytes of the KV cache; None: what `max_num_seqs` sequences of `max_model_len` tokens fill, or
            most of the memory that is left.
        block_size: Tokens of a page of the KV cache.
        enable_prefix_caching: Whether requests with equal beginnings share pages.
        enable_weight_cache: Whether packed weights are kept on disk, and mapped when an earlier load kept them.
        threads: Threads that work on a step; None: as many as this process may use.
        seed: What the seeds of requests without one are drawn from; None: from the system.
        generation_config: `auto`: requests without sampling values take those of the checkpoint's
            generation_config.json; `none`: they take those of `SamplingParams`.
        chat_template: A file with a template that replaces the model's own.
        revision: Branch, tag or commit, for models on the hub.

    Attributes:
        name: What the model was asked for by.
        max_model_len: Most tokens of a request, prompt and output together.
        default_sampling_params: What requests without sampling values take.
        notices: What a person should know about how it was loaded.
        load_seconds: How long loading took.

    Raises:
        ModelNotFoundError: there is no such model.
        UnsupportedModelError: it is of a kind that is not run.
        WeightsError: its files are damaged.
        InsufficientMemoryError: it does not fit.
        InvalidRequestError: an option is outside its range.
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        *,
        dtype: Precision = "auto",
        kv_cache_dtype: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 32,
        max_num_batched_tokens: int = 512,
        max_num_steps: int = 1,
        kv_cache_memory: int | None = None,
        block_size: int = 128,
        enable_prefix_caching: bool = True,
        enable_weight_cache: bool = True,
        threads: int | None = None,
        seed: int | None = None,
        generation_config: GenerationConfig = "auto",
        chat_template: str | Path | None = None,
        revision: str | None = None,
    ) -> None:
        begin = time.perf_counter()
        options = EngineOptions(
            dtype=dtype,
            kv_cache_dtype=kv_cache_dtype,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_steps=max_num_steps,
            kv_cache_memory=kv_cache_memory,
            block_size=block_size,
            enable_prefix_caching=enable_prefix_caching,
            enable_weight_cache=enable_weight_cache,
            threads=threads,
            seed=seed,
            generation_config=generation_config,
            chat_template=chat_template,
            revision=revision,
        )
        self._is_closed = False
        self._loaded = load_model(str(model), options)
        self._preparation = Preparation(self._loaded, seed)
        self._driver = LoopDriver(self._loaded.pipeline)
        self.name = str(model)
        self.max_model_len = self._loaded.max_model_len
        self.default_sampling_params = SamplingParams.from_input(None, self._loaded.sampling_defaults)
        self.notices = self._loaded.notices
        self.load_seconds = time.perf_counter() - begin

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all requests and gives the memory back. Harmless when it was done before."""
        self._driver.close()
        self._is_closed = True
        for name in ("_loaded", "_preparation"):
            self.__dict__.pop(name, None)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            UnsupportedModelError: it has none, or one of a kind that is not implemented; token ids still work.
        """
        return self._open.tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be given and got; else there are only token ids."""
        return self._open.has_tokenizer

    @property
    def sampling_defaults(self) -> SamplingParamsInput:
        """What the checkpoint states about sampling; empty: nothing, or it was switched off."""
        self._require_open()
        return self._loaded.sampling_defaults

    @property
    def model(self) -> Any:
        """The loaded pipeline model."""
        self._require_open()
        return self._loaded.model

    @property
    def pipeline(self) -> TextGenerationPipeline:
        """The loop, for benchmarks: they take its steps themselves, and answer no requests meanwhile."""
        self._require_open()
        return self._loaded.pipeline

    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stream: Literal[False] = False,
        progress: bool | None = None,
    ) -> list[RequestOutput]: ...

    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stream: Literal[True],
    ) -> Iterator[RequestOutput]: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stream: bool = False,
        progress: bool | None = None,
    ) -> list[RequestOutput] | Iterator[RequestOutput]:
        """Continues prompts.

        A request that fails while it runs does not touch the others: its output has the `error`.

        Args:
            prompts: One or many; each is text, token ids, `{"prompt": text}` or `{"prompt_token_ids": ids}`.
            sampling_params: For all prompts, or one each; None: `default_sampling_params`.
            stream: Give the outputs while they grow; an iterator that is dropped ends its requests.
            progress: Show a bar; None: if standard error is a terminal and there are several prompts.

        Returns:
            One output per prompt, in their order; or an iterator over outputs as they grow, each finished one last.

        Raises:
            InvalidRequestError: a prompt does not fit or is of no known form; nothing was answered.
        """
        requests = as_requests(prompts, self._params(sampling_params))
        return self.stream_requests(requests) if stream else self.answer_requests(requests, progress)

    @overload
    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stream: Literal[False] = False,
        progress: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]: ...

    @overload
    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stream: Literal[True],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Iterator[RequestOutput]: ...

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stream: bool = False,
        progress: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput] | Iterator[RequestOutput]:
        """Answers conversations.

        Args:
            messages: One conversation, or many: messages with `role` and `content`.
            sampling_params: As of `generate`.
            stream: As of `generate`.
            progress: As of `generate`.
            tools: Descriptions of tools, for templates that take them.
            add_generation_prompt: End the prompt with the opening of the assistant's turn.
            chat_template_kwargs: Further variables of the template.

        Returns:
            As `generate`.

        Raises:
            UnsupportedModelError: the model has no chat template.
            InvalidRequestError: the template refuses the messages, or a prompt does not fit.
        """
        is_one = not messages or isinstance(messages[0], Mapping)
        conversations = cast(Sequence[Sequence[Message]], [messages] if is_one else messages)
        options: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, "variables": chat_template_kwargs}
        if tools is not None:
            options["tools"] = tools
        params = spread(self._params(sampling_params), len(conversations))
        requests = [
            GenerateRequest(messages=conversation, sampling_params=values, chat_template_kwargs=options)
            for conversation, values in zip(conversations, params, strict=True)
        ]
        return self.stream_requests(requests) if stream else self.answer_requests(requests, progress)

    def beam_search(self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams) -> list[BeamSearchOutput]:
        """Searches for the likeliest continuations of prompts.

        Args:
            prompts: As of `generate`.
            params: How far and how wide.

        Raises:
            InvalidRequestError: a prompt does not fit or is of no known form.
        """
        requests = as_requests(prompts, SamplingParams(temperature=0))
        preparation = self._open
        ends = frozenset(preparation.tokenizer.eos_token_ids) if preparation.has_tokenizer else frozenset()
        found = []
        for request in requests:
            ids = preparation.encode(request)[1]
            found.append(
                search(
                    self._driver,
                    ids,
                    params,
                    ends=ends,
                    vocab_size=preparation.vocab_size,
                    max_length=self.max_model_len,
                    detokenize=self.detokenize if preparation.has_tokenizer else lambda _ids: "",
                )
            )
        return found

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: Pooling = "mean",
        normalize: bool = True,
        layer: int = -1,
    ) -> npt.NDArray[np.float32]:
        """One vector per prompt, float32 `[n, H]`.

        Args:
            prompts: As of `generate`.
            pooling: `mean` over its tokens, its `last` token, or `cls`: its first.
            normalize: Scale each vector to length 1.
            layer: Whose outputs, as in `encode`.

        Raises:
            InvalidRequestError: there is no such pooling or layer, or a prompt does not fit.
        """
        place = self._layer(layer)
        readers = self._read_prompts(prompts, lambda: PoolingReader(pooling, place))
        return np.stack([reader.vector(normalize) for reader in readers])

    def encode(
        self, prompts: Prompt | Sequence[Prompt], *, layers: Sequence[int] = (-1,)
    ) -> list[dict[int, npt.NDArray[np.float32]]]:
        """The hidden states of prompts.

        Args:
            prompts: As of `generate`.
            layers: Which ones: 1 to the number of layers stand for what goes out of each; the last one's is taken
                behind the final norm. Negative numbers count from the end.

        Returns:
            For each prompt layer -> float32 `[T, H]`, by the numbers that were given.

        Raises:
            InvalidRequestError: there is no such layer, or a prompt does not fit.
        """
        places = {layer: self._layer(layer) for layer in layers}
        readers = self._read_prompts(prompts, lambda: HiddenStateReader(sorted(set(places.values()))))
        return [
            {layer: np.concatenate(reader.chunks[place]) for layer, place in places.items()} for reader in readers
        ]

    def logits(self, token_ids: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
        """The model's logits at every position, float32 `[T, V]` for each prompt.

        Args:
            token_ids: Prompts as token ids.

        Raises:
            InvalidRequestError: a prompt is empty or does not fit, or a token is outside the vocabulary.
        """
        readers = [LogitReader() for _ in token_ids]
        self._read([self._open.reading(ids, reader) for ids, reader in zip(token_ids, readers, strict=True)])
        return [np.concatenate(reader.chunks) for reader in readers]

    def score(self, prompt: Prompt, choices: Sequence[Prompt]) -> list[ChoiceScore]:
        """How likely continuations of a prompt are. What they share is computed once.

        Args:
            prompt: Text or token ids.
            choices: Continuations; texts are tokenized by themselves, without special tokens.

        Raises:
            InvalidRequestError: there is no choice, one is empty, or prompt and choice do not fit together.
        """
        greedy = SamplingParams(temperature=0)
        (request,) = as_requests(prompt, greedy)
        begin = self._open.encode(request)[1]
        texts: list[str | None] = []
        endings: list[tuple[int, ...]] = []
        for choice in as_requests(list(choices), greedy):
            texts.append(choice.text)
            ids = choice.token_ids if choice.text is None else self.tokenize(choice.text, add_special_tokens=False)
            endings.append(tuple(int(token) for token in ids or ()))
        if not endings or not all(endings):
            raise InvalidRequestError("must be texts of at least one token", param="choices")
        scored = self._score_endings(begin, endings)
        return [
            ChoiceScore(
                text=text,
                token_ids=ids,
                token_logprobs=tuple(record.token_log_probabilities[0] for record in reader.records),
                is_greedy=all(r.ranks[0][token] == 1 for r, token in zip(reader.records, ids, strict=True)),
            )
            for text, ids, reader in zip(texts, endings, scored, strict=True)
        ]

    def perplexity(self, text: Prompt, *, window: int | None = None, stride: int | None = None) -> float:
        """`exp` of the mean negative log-probability per token of a text.

        A text that is longer than the window is read in windows; each token after the first window is scored once,
        with at least `window - stride` tokens before it.

        Args:
            text: Text or token ids, at least two tokens.
            window: Tokens of a window; None: `max_model_len`.
            stride: Tokens that a window goes on by; None: half a window.

        Raises:
            InvalidRequestError: the text has fewer than two tokens, or a number is out of range.
        """
        (request,) = as_requests(text, SamplingParams(temperature=0))
        ids = self._open.encode(request)[1]
        width = self.max_model_len if window is None else window
        step = max(1, width // 2) if stride is None else stride
        if not 2 <= width <= self.max_model_len:
            raise InvalidRequestError(f"must be from 2 to {self.max_model_len}, got {width}", param="window")
        if not 1 <= step < width:
            raise InvalidRequestError(f"must be from 1 to {width - 1}, got {step}", param="stride")
        if len(ids) < 2:
            raise InvalidRequestError(f"must have at least 2 tokens, it has {len(ids)}", param="text")
        readers: list[LogprobReader] = []
        contexts = []
        scored = 1  # the first token has nothing before it
        while scored < len(ids):
            begin = 0 if scored == 1 else max(0, min(scored + step, len(ids)) - width)
            part = ids[begin : begin + width]
            reader = self._logprob_reader(part, scored - begin)
            readers.append(reader)
            contexts.append(self._open.reading(part, reader))
            scored = begin + len(part)
        self._read(contexts)
        values = [record.token_log_probabilities[0] for reader in readers for record in reader.records]
        return float(np.exp(-np.mean(values)))

    def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; `add_special_tokens`: with those that the model's tokenizer puts around a prompt."""
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def detokenize(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; `skip_special_tokens`: without control tokens."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def render(self, messages: Sequence[Message], **options: Any) -> Rendered:
        """What a conversation looks like to the model: text and token ids.

        Args:
            messages: Messages with `role` and `content`.
            options: `tools`, `documents`, `add_generation_prompt`, `variables` (further ones of the template).

        Raises:
            UnsupportedModelError: the model has no chat template.
            InvalidRequestError: the template refuses the messages.
        """
        return self._open.render(messages, **options)

    def answer_requests(
        self, requests: Sequence[GenerateRequest], progress: bool | None = None
    ) -> list[RequestOutput]:
        """Answers requests together; `generate` and `chat` in another form. Arguments and errors are theirs."""
        from puna.entrypoints.console import progress_bar

        answers = self._answers(requests)
        with self._driver.running(answers), progress_bar("generating", len(answers), progress) as tell:
            for answer in answers:
                self._driver.finish(answer)
                tell()
            return [answer.output() for answer in answers]

    def stream_requests(self, requests: Sequence[GenerateRequest]) -> Iterator[RequestOutput]:
        """Answers requests together and gives outputs as they grow. Errors come before the first of them."""
        answers = self._answers(requests)

        def grow() -> Iterator[RequestOutput]:
            with self._driver.running(answers):
                for answer in self._driver.grow(answers):
                    yield answer.output()

        return grow()

    def _answers(self, requests: Sequence[GenerateRequest]) -> list[Answer]:
        return [self._open.answer(request) for request in requests]

    @property
    def _open(self) -> Preparation:
        self._require_open()
        return self._preparation

    def _require_open(self) -> None:
        if self._is_closed:
            raise InvalidRequestError("this LLM is closed")

    def _params(
        self, params: SamplingParams | Sequence[SamplingParams] | None
    ) -> SamplingParams | Sequence[SamplingParams]:
        return self.default_sampling_params if params is None else params

    def _layer(self, layer: int) -> int:
        """A layer as readers number them: from 0, the number of layers for the output of the final norm."""
        count = int(self.model.config.num_hidden_layers)
        number = layer + count + 1 if layer < 0 else layer
        if not 1 <= number <= count:
            raise InvalidRequestError(f"must be from 1 to {count} (or -{count} to -1), got {layer}", param="layer")
        return number if number == count else number - 1

    def _logprob_reader(self, ids: Sequence[int], first_token: int) -> LogprobReader:
        tokens = np.array(ids, dtype=np.int64)
        return LogprobReader(tokens, first_token=first_token)

    def _score_endings(self, begin: list[int], endings: Sequence[tuple[int, ...]]) -> list[LogprobReader]:
        readers = [self._logprob_reader([*begin, *ending], len(begin)) for ending in endings]
        contexts = [
            self._open.reading([*begin, *ending], reader) for ending, reader in zip(endings, readers, strict=True)
        ]
        if len(contexts) == 1 or len(begin) == 1:
            self._read(contexts)
            return readers
        # The first choice's token is foretold by the prompt's last one, which therefore each of them reads.
        root = Answer(self._open.root(begin[:-1]), None, ())
        with self._driver.running([root]):
            self._driver.advance(root)
            for first in range(0, len(contexts), _SCORED_TOGETHER):
                self._read(contexts[first : first + _SCORED_TOGETHER], root)
        return readers

    def _read_prompts(self, prompts: Prompt | Sequence[Prompt], make: Callable[[], _T]) -> list[_T]:
        requests = as_requests(prompts, SamplingParams(temperature=0))
        readers = [make() for _ in requests]
        self._read([
            self._open.reading(self._open.encode(request)[1], cast(Any, reader))
            for request, reader in zip(requests, readers, strict=True)
        ])
        return readers

    def _read(self, contexts: Sequence[Any], parent: Answer | None = None) -> None:
        """Runs contexts whose readers are what is wanted of them."""
        answers = [Answer(context, None, ()) for context in contexts]
        with self._driver.running(answers, parent):
            for answer in answers:
                self._driver.finish(answer)
                error = answer.output().error
                if error is not None:
                    raise error
