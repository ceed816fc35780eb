"""`LLM`: a loaded model for one process. See docs/python.md."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast, overload

from puna.entrypoints.adapters import HasAdapters
from puna.entrypoints.answer import Answer
from puna.entrypoints.beam_search import search
from puna.entrypoints.jobs import Job, run_jobs
from puna.entrypoints.loading import EngineOptions, GenerationConfig, Precision, kernel_variant, load_model
from puna.entrypoints.loop_driver import LoopDriver
from puna.entrypoints.outputs import BeamSearchOutput, RequestOutput
from puna.entrypoints.preparation import (
    AdapterNames,
    Message,
    Preparation,
    Prompt,
    Rendered,
    as_requests,
    spread,
    spread_adapters,
)
from puna.entrypoints.reading import ReadsPrompts
from puna.errors import InvalidRequestError
from puna.models import DEFAULT_MODEL
from puna.pipelines.beam_search_params import BeamSearchParams
from puna.pipelines.request import GenerateRequest
from puna.pipelines.sampling_params import SamplingParams, SamplingParamsInput
from puna.pipelines.text_generation import TextGenerationPipeline
from puna.tokenization import Tokenizer

__all__ = ["LLM", "kernel_variant"]

_J = TypeVar("_J", bound=Job)


class LLM(ReadsPrompts, HasAdapters):
    """A loaded model that answers requests.

    Several threads may use it at once; their requests share its steps. A request's result does not depend on what
    runs beside it.

    Args:
        model: A `.gguf` file, a directory, a name on the hub, or `smollm2`.
        dtype: `auto`: products take activations of 8 bits where the weights' format has integer kernels; `float32`:
            every product takes float32 activations.
        kv_cache_dtype: Element type of cached keys and values: `float32`, `float16`, `bfloat16`, `int8`, or
            `auto` (float16).
        max_model_len: Most tokens of a request, prompt and output; None: what the model and the memory allow.
        max_num_seqs: Sequences in a step, from 1.
        max_num_batched_tokens: Tokens in a step, over all sequences; a longer prompt is read in several steps.
        max_num_steps: Forward passes between two decisions of the scheduler.
        kv_cache_memory: Bytes of the KV cache; None: what `max_num_seqs` sequences of `max_model_len` tokens fill, or
            most of the memory that is left.
        block_size: Tokens of a page of the KV cache.
        enable_prefix_caching: Whether requests with equal beginnings share pages.
        enable_weight_cache: Whether packed weights are kept on disk, and mapped when an earlier load kept them.
        quantize: A recipe, `Q4_K_M` and the like, by which float weights are quantized when they are loaded; see
            docs/quantize.md. With the weight cache later loads map what the first one made. None: weights stay as they
            are stored.
        prefix_cache_dir: A directory where pages of prompts and texts are kept, so that a later process continues them
            without reading them again; None: none. It is as confidential as they are.
        prefix_cache_bytes: Most bytes of the files there; the least recently used ones make room.
        data_parallel_degree: Copies of the model that run at the same time on their share of the threads, each with its
            own `max_num_seqs`, `max_num_batched_tokens` and part of the KV cache; the weights are there once.
        threads: Threads that work on a step; None: as many as this process may use.
        seed: What the seeds of requests without one are drawn from; None: from the system.
        generation_config: `auto`: requests without sampling values take those of the checkpoint's
            generation_config.json; `none`: they take those of `SamplingParams`.
        chat_template: A file with a template that replaces the model's own.
        revision: Branch, tag or commit, for models on the hub.
        enable_lora: Whether requests may name adapters (docs/lora.md).
        lora_paths: Adapters to load, `path` or `name=path`.
        max_lora_rank: The largest rank that an adapter may have.
        max_num_loras: Adapters in a step; None: as many as `lora_paths` has, and at least 8.
        lora_memory: Most bytes of adapters in memory; None: all that are loaded.

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
        AdapterError: an adapter of `lora_paths` cannot be used.
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
        quantize: str | None = None,
        prefix_cache_dir: str | Path | None = None,
        prefix_cache_bytes: int = 10 << 30,
        data_parallel_degree: int = 1,
        threads: int | None = None,
        seed: int | None = None,
        generation_config: GenerationConfig = "auto",
        chat_template: str | Path | None = None,
        revision: str | None = None,
        enable_lora: bool = False,
        lora_paths: Sequence[str] = (),
        max_lora_rank: int = 16,
        max_num_loras: int | None = None,
        lora_memory: int | None = None,
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
            quantize=quantize,
            prefix_cache_dir=prefix_cache_dir,
            prefix_cache_bytes=prefix_cache_bytes,
            data_parallel_degree=data_parallel_degree,
            threads=threads,
            seed=seed,
            generation_config=generation_config,
            chat_template=chat_template,
            revision=revision,
            enable_lora=enable_lora,
            lora_paths=lora_paths,
            max_lora_rank=max_lora_rank,
            max_num_loras=max_num_loras,
            lora_memory=lora_memory,
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
        if not self._is_closed:
            self._loaded.close()
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
        adapter: AdapterNames = None,
    ) -> list[RequestOutput]: ...

    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stream: Literal[True],
        adapter: AdapterNames = None,
    ) -> Iterator[RequestOutput]: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stream: bool = False,
        progress: bool | None = None,
        adapter: AdapterNames = None,
    ) -> list[RequestOutput] | Iterator[RequestOutput]:
        """Continues prompts.

        A request that fails while it runs does not touch the others: its output has the `error`.

        Args:
            prompts: One or many; each is text, token ids, `{"prompt": text}` or `{"prompt_token_ids": ids}`.
            sampling_params: For all prompts, or one each; None: `default_sampling_params`.
            stream: Give the outputs while they grow; an iterator that is dropped ends its requests.
            progress: Show a bar; None: if standard error is a terminal and there are several prompts.
            adapter: The name of an adapter, or None for the model itself: for all prompts, or one each.

        Returns:
            One output per prompt, in their order; or an iterator over outputs as they grow, each finished one last.

        Raises:
            InvalidRequestError: a prompt does not fit or is of no known form; nothing was answered.
            AdapterNotFoundError: there is no such adapter.
        """
        requests = as_requests(prompts, self._params(sampling_params), adapter)
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
        tool_choice: str | Mapping[str, Any] = "auto",
        parallel_tool_calls: bool = True,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        adapter: AdapterNames = None,
    ) -> list[RequestOutput]: ...

    @overload
    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stream: Literal[True],
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] = "auto",
        parallel_tool_calls: bool = True,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        adapter: AdapterNames = None,
    ) -> Iterator[RequestOutput]: ...

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stream: bool = False,
        progress: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] = "auto",
        parallel_tool_calls: bool = True,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        adapter: AdapterNames = None,
    ) -> list[RequestOutput] | Iterator[RequestOutput]:
        """Answers conversations.

        Args:
            messages: One conversation, or many: messages with `role` and `content`.
            sampling_params: As of `generate`.
            stream: As of `generate`.
            progress: As of `generate`.
            tools: Tools that the model may call: objects of `type` function and a `function`. Calls are in the
                `message.tool_calls` of what is returned.
            tool_choice: `auto`, `none`, `required`, or an object that names a function.
            parallel_tool_calls: Whether an answer may hold several calls.
            add_generation_prompt: End the prompt with the opening of the assistant's turn.
            chat_template_kwargs: Further variables of the template.
            adapter: As of `generate`.

        Returns:
            As `generate`.

        Raises:
            UnsupportedModelError: the model has no chat template.
            InvalidRequestError: the template refuses the messages, or a prompt does not fit.
        """
        is_one = not messages or isinstance(messages[0], Mapping)
        conversations = cast(Sequence[Sequence[Message]], [messages] if is_one else messages)
        options: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, "variables": chat_template_kwargs}
        params = spread(self._params(sampling_params), len(conversations))
        requests = [
            GenerateRequest(
                messages=conversation,
                sampling_params=values,
                chat_template_kwargs=options,
                tools=tools,
                tool_choice=tool_choice,
                parallel_tool_calls=parallel_tool_calls,
                adapter=name,
            )
            for conversation, values, name in zip(
                conversations, params, spread_adapters(adapter, len(conversations)), strict=True
            )
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

    def answer_jobs(self, jobs: Iterable[_J], *, max_in_flight: int = 64) -> Iterator[_J]:
        """Answers what comes out of a source that may be too long to be held: jobs are taken when there is room.

        Args:
            jobs: Requests that are answered, or embedded, together. A job that cannot be served gets an `error`.
            max_in_flight: Requests that are under way at most, unless one job has more.

        Yields:
            The jobs, each when it is done; an iterator that is dropped ends those that are under way.

        Raises:
            InvalidRequestError: `max_in_flight` is below 1.
        """
        if max_in_flight < 1:
            raise InvalidRequestError(f"must be at least 1, got {max_in_flight}", param="max_in_flight")
        return run_jobs(jobs, self._driver, self._open, max_in_flight=max_in_flight, layer=self._layer(-1))

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
