"""`AsyncLLM`: a loaded model for programs on asyncio. See docs/python.md."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from puna.entrypoints.adapters import HasAdapters
from puna.entrypoints.answer import Answer
from puna.entrypoints.loading import EngineOptions, load_model
from puna.entrypoints.outputs import RequestOutput
from puna.entrypoints.preparation import Message, Preparation, Prompt, as_requests
from puna.errors import EngineStoppedError
from puna.models import DEFAULT_MODEL
from puna.pipelines.async_engine import AsyncEngine, EngineStatistics, TokenStream
from puna.pipelines.batch import FinishReason
from puna.pipelines.context import TextContext
from puna.pipelines.prompt_reading import Pooling, PoolingReader
from puna.pipelines.request import GenerateRequest, RequestID, new_request_id
from puna.pipelines.sampling_params import SamplingParams
from puna.tokenization import Tokenizer

__all__ = ["AsyncLLM"]


class AsyncLLM(HasAdapters):
    """A loaded model that answers requests of coroutines. A thread of its own runs the model.

    Args:
        model: As of `LLM`.
        max_queue_size: Requests that may wait; one more is refused.
        options: As of `LLM`.

    Attributes:
        name: What the model was asked for by.
        max_model_len: Most tokens of a request, prompt and output together.
        default_sampling_params: What requests without sampling values take.
        sampling_defaults: What the checkpoint states about sampling; empty: nothing, or it was switched off.
        notices: What a person should know about how it was loaded.
        load_seconds: How long loading took.

    Raises:
        As `LLM`.
    """

    def __init__(self, model: str | Path = DEFAULT_MODEL, *, max_queue_size: int = 512, **options: Any) -> None:
        begin = time.perf_counter()
        values = EngineOptions(**options)
        loaded = load_model(str(model), values)
        self._loaded = loaded
        self._preparation = Preparation(loaded, values.seed)
        self._engine = AsyncEngine(loaded.pipeline, max_queue_size=max_queue_size)
        self.name = str(model)
        self.max_model_len = loaded.max_model_len
        self.default_sampling_params = SamplingParams.from_input(None, loaded.sampling_defaults)
        self.sampling_defaults = loaded.sampling_defaults
        self.notices = loaded.notices
        self.load_seconds = time.perf_counter() - begin

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def model(self) -> Any:
        """The loaded pipeline model."""
        return self._loaded.model

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be given and got; else there are only token ids."""
        return self._preparation.has_tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            UnsupportedModelError: it has none, or one of a kind that is not implemented; token ids still work.
        """
        return self._preparation.tokenizer

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        adapter: str | None = None,
    ) -> AsyncGenerator[RequestOutput]:
        """Continues a prompt. An iterator that is closed or cancelled ends the request.

        Args:
            prompt: Text, token ids, `{"prompt": text}` or `{"prompt_token_ids": ids}`.
            sampling_params: None: `default_sampling_params`.
            request_id: A name for the request, by which `abort` finds it; None: a fresh one.
            adapter: The name of an adapter; None: the model itself.

        Yields:
            The output as it grows; the last one is finished, and has the `error` if the request failed.

        Raises:
            InvalidRequestError: the prompt does not fit or is of no known form, or the name is taken.
            QueueFullError: too many wait.
            EngineStoppedError: it was closed.
        """
        params = self.default_sampling_params if sampling_params is None else sampling_params
        (request,) = as_requests(prompt, params, adapter)
        async with contextlib.aclosing(self.answer(_named(request, request_id))) as outputs:
            async for output in outputs:
                yield output

    async def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        adapter: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] = "auto",
        parallel_tool_calls: bool = True,
        **template: Any,
    ) -> AsyncGenerator[RequestOutput]:
        """Answers a conversation; as `generate`.

        Args:
            messages: Messages with `role` and `content`.
            sampling_params: As of `generate`.
            request_id: As of `generate`.
            adapter: As of `generate`.
            tools, tool_choice, parallel_tool_calls: As of `LLM.chat`.
            template: What the template is rendered with: `documents`, `add_generation_prompt`, `variables`.

        Raises:
            UnsupportedModelError: the model has no chat template.
            InvalidRequestError: the template refuses the messages, or as `generate`.
            QueueFullError: too many wait.
            EngineStoppedError: it was closed.
        """
        params = self.default_sampling_params if sampling_params is None else sampling_params
        request = GenerateRequest(
            messages=messages,
            sampling_params=params,
            chat_template_kwargs=template,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            adapter=adapter,
        )
        async with contextlib.aclosing(self.answer(_named(request, request_id))) as outputs:
            async for output in outputs:
                yield output

    async def answer(self, request: GenerateRequest) -> AsyncGenerator[RequestOutput]:
        """Answers a request; what `generate` and `chat` do. Results and errors are theirs."""
        async with contextlib.aclosing(self.begin(await self.prepare(request))) as outputs:
            async for output in outputs:
                yield output

    async def prepare(self, request: GenerateRequest) -> Answer:
        """Renders and tokenizes a request in a thread, so that the event loop goes on. `begin` takes the result.

        Raises:
            As `generate` and `chat`, but for what depends on what else is under way.
        """
        return await asyncio.to_thread(self._preparation.answer, request)

    def begin(self, answer: Answer) -> AsyncGenerator[RequestOutput]:
        """Gives a prepared request to the engine now; what is returned yields its outputs, as `generate` does.

        Raises:
            QueueFullError: too many wait.
            EngineStoppedError: it was closed.
        """
        return self._outputs(answer, self._engine.submit(answer.context))

    async def _outputs(self, answer: Answer, stream: TokenStream) -> AsyncGenerator[RequestOutput]:
        try:
            async for delta in stream:
                if answer.take(delta):  # a stop string ended it, which the engine cannot know
                    self._engine.abort(delta.request_id, delta.choice)
                yield answer.output()
                if answer.is_finished:
                    return
        finally:
            stream.close()

    async def encode_prompt(self, request: GenerateRequest) -> tuple[str | None, list[int]]:
        """The text of a request's prompt, where it has one, and its tokens; made in a thread.

        Raises:
            UnsupportedModelError: the model lacks the chat template or the tokenizer that it takes.
            InvalidRequestError: the prompt is empty, or the template refuses it.
        """
        return await asyncio.to_thread(self._preparation.encode, request)

    async def embed(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        pooling: Pooling = "mean",
        normalize: bool = True,
        adapter: str | None = None,
    ) -> npt.NDArray[np.float32]:
        """One vector per prompt, float32 `[n, H]`.

        Args:
            prompts: Prompts as token ids, at least one.
            pooling: `mean` over its tokens, its `last` token, or `cls`: its first.
            normalize: Scale each vector to length 1.
            adapter: The name of an adapter; None: the model itself.

        Raises:
            InvalidRequestError: a prompt does not fit.
            QueueFullError: too many wait.
            EngineStoppedError: it was closed.
        """
        layer = int(self._loaded.model.config.num_hidden_layers)
        readers = [PoolingReader(pooling, layer) for _ in prompts]
        make = self._preparation.reading
        await self._read([make(ids, reader, adapter) for ids, reader in zip(prompts, readers, strict=True)])
        return np.stack([reader.vector(normalize) for reader in readers])

    async def _read(self, contexts: Sequence[TextContext]) -> None:
        """Runs contexts whose readers are what is wanted of them."""
        streams: list[TokenStream] = []
        try:
            for context in contexts:
                streams.append(self._engine.submit(context))
            for stream in streams:
                async for delta in stream:
                    if delta.error is not None:
                        raise delta.error
                    if delta.finish_reason is FinishReason.ABORT:
                        raise EngineStoppedError("was shut down")
        finally:
            for stream in streams:
                stream.close()

    def abort(self, request_id: str) -> None:
        """Ends a request before the next step; its last output has the reason `abort`. One that has ended is left."""
        self._engine.abort(RequestID(request_id))

    def statistics(self) -> EngineStatistics:
        """What the engine did so far, and what is under way."""
        return self._engine.statistics()

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Takes no further requests and waits until those that it has are answered; False: the time was over before."""
        return await asyncio.to_thread(self._engine.drain, timeout_s)

    async def close(self) -> None:
        """Ends all requests, and the thread."""
        await asyncio.to_thread(self._engine.shutdown)
        await asyncio.to_thread(self._loaded.close)


def _named(request: GenerateRequest, request_id: str | None) -> GenerateRequest:
    return replace(request, request_id=new_request_id() if request_id is None else RequestID(request_id))
