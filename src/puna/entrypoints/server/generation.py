"""`Generation`: the requests of one call on their way through the line and the engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request

from puna.entrypoints.answer import Answer
from puna.entrypoints.openai.requests import BodyDefaults, Call, Endpoint, read_body
from puna.entrypoints.outputs import RequestOutput
from puna.entrypoints.server.keys import Tenant
from puna.entrypoints.server.problems import Refusal
from puna.entrypoints.server.settings import Limits
from puna.entrypoints.server.timeline import Timeline
from puna.errors import EngineStoppedError, InvalidRequestError, PromptTooLongError
from puna.pipelines.batch import FinishReason
from puna.pipelines.request import GenerateRequest, RequestID
from puna.pipelines.sampling_params import SamplingParams

if TYPE_CHECKING:
    from puna.entrypoints.server.state import Server

__all__ = ["Generation", "check_limits", "read_call", "unless_disconnected"]

_T = TypeVar("_T")


def read_call(server: Server, endpoint: Endpoint, body: Mapping[str, Any], *, may_stream: bool = True) -> Call:
    """Reads a body of OpenAI's interface within the server's limits.

    Raises:
        InvalidRequestError: a field is not served, goes beyond a limit, or makes no sense.
        ModelNotFoundError: the body names another model.
        Refusal: the model is not ready.
    """
    settings = server.settings
    check_limits(body, server.limits)
    defaults = BodyDefaults(
        sampling=settings.sampling.over(server.llm.sampling_defaults),
        may_stream=may_stream,
        is_strict=settings.is_strict,
        template_variables=settings.template_variables,
        adapters=frozenset(server.adapter_names),
    )
    return read_body(endpoint, body, settings.model_names, defaults)


def check_limits(body: Mapping[str, Any], limits: Limits) -> None:
    """Refuses a body that asks for more than one request may have, before anything is made of it.

    Raises:
        InvalidRequestError: it does; `param` names the field.
    """
    def size(name: str) -> int:
        value = body.get(name)
        return len(value) if isinstance(value, list | dict) else 1 if value else 0

    def number(name: str) -> int:
        value = body.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else 0

    num_prompts = 1
    for name in ("prompt", "input", "documents"):
        value = body.get(name)
        if isinstance(value, list) and value and not isinstance(value[0], int):
            num_prompts = max(num_prompts, len(value))
            _limit(name, len(value), limits.max_prompts, "entries")
    for name in ("n", "best_of"):
        _limit(name, number(name), limits.max_n, "continuations")
        choices = num_prompts * max(1, number(name))
        if body.get("input") is None:
            _limit(name, choices, limits.max_choices, "continuations in one request")
    _limit("stop", size("stop"), limits.max_stop, "texts")
    _limit("logit_bias", size("logit_bias"), limits.max_logit_bias, "tokens")
    for name in ("top_logprobs", "logprobs", "prompt_logprobs"):
        _limit(name, number(name), limits.max_top_logprobs, "tokens at each place")


def _limit(name: str, value: int, most: int, what: str) -> None:
    if value > most:
        raise InvalidRequestError(f"this server takes at most {most} {what}, got {value}", param=name)


async def unless_disconnected(request: Request, work: Awaitable[_T]) -> _T:
    """Waits for some work, which is cancelled when the client goes away.

    Raises:
        Refusal: the client went away.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refusal(499, "client_closed", "the client went away")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Generation:
    """The requests of one call. `prepare` makes it; `result` or `news` runs it; `close` ends it at any moment.

    Attributes:
        latest: The latest output of each request, or None.
    """

    def __init__(self, server: Server, tenant: Tenant, timeline: Timeline, answers: list[Answer]) -> None:
        self._server = server
        self._tenant = tenant
        self._timeline = timeline
        self._answers = answers
        self.latest: list[RequestOutput | None] = [None] * len(answers)
        self._changed: dict[int, None] = {}  # in the order of changes
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def prepare(
        cls, server: Server, tenant: Tenant, timeline: Timeline, requests: Sequence[GenerateRequest]
    ) -> Generation:
        """Renders, tokenizes and checks requests; nothing is in the engine yet.

        Raises:
            Refusal: the line is full, or the model is not ready.
            InvalidRequestError: a request can never be served.
        """
        server.admission.check(tenant)
        llm, limits = server.llm, server.limits
        has_many_tenants = len(server.keys.names) > 1
        answers: list[Answer] = []
        for number, one in enumerate(requests):
            name = timeline.request_id if len(requests) == 1 else f"{timeline.request_id}-{number}"
            one = replace(
                one,
                request_id=RequestID(name),
                cache_salt=tenant.salt(one.cache_salt),
                sampling_params=_within(one.sampling_params, limits),
            )
            # A tenant's priorities order its own requests; they must not push those of others aside.
            answer = await llm.prepare(replace(one, priority=0) if has_many_tenants else one)
            length = answer.context.admission_length
            if limits.max_prompt_tokens is not None and length > limits.max_prompt_tokens:
                raise PromptTooLongError(length, limits.max_prompt_tokens, "this server takes")
            timeline.num_prompt_tokens += length
            answers.append(answer)
        timeline.mark("prepared")
        generation = cls(server, tenant, timeline, answers)
        generation._priority = requests[0].priority
        return generation

    _priority: int = 0

    async def result(self) -> list[RequestOutput]:
        """Runs all requests to their ends.

        Raises:
            PunaError: one of them failed, or the server ended.
        """
        try:
            async for _ in self.news():
                pass
            return [output for output in self.latest if output is not None]
        finally:
            await self.close()

    async def news(self, silence_s: float | None = None) -> AsyncIterator[tuple[int, RequestOutput] | None]:
        """Runs all requests; yields which one has something new, and its output as far as it got.

        What comes while nobody asks is given in one piece.

        Args:
            silence_s: Yield None whenever nothing came for this long, in seconds.

        Raises:
            PunaError: a request failed, or the server ended.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        while True:
            while self._changed:
                number = next(iter(self._changed))
                del self._changed[number]
                output = self.latest[number]
                assert output is not None
                yield number, output
                _raise_failure(output)
            if self._task.done():
                self._task.result()
                return
            self._news.clear()
            try:
                async with asyncio.timeout(silence_s):
                    await self._news.wait()
            except TimeoutError:
                yield None

    async def close(self) -> None:
        """Ends what is under way."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        elif self._task is not None and not self._task.cancelled():
            self._task.exception()  # whoever is interested has got it from `news`
        self._end()

    async def _run(self) -> None:
        try:
            num_sequences = sum(answer.context.num_choices for answer in self._answers)
            async with self._server.admission.place(self._tenant, self._priority, num_sequences):
                self._timeline.mark("admitted")
                # A group: when one fails, or the call is cancelled, all of them end before the place is given on.
                async with asyncio.TaskGroup() as group:
                    for number, answer in enumerate(self._answers):
                        group.create_task(self._follow(number, answer))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._news.set()

    async def _follow(self, number: int, answer: Answer) -> None:
        metrics, timeline = self._server.metrics, self._timeline
        begin: float | None = None
        num_before = 0
        llm = self._server.host.loaded  # also while it drains: this request was taken before
        assert llm is not None
        async with contextlib.aclosing(llm.begin(answer)) as outputs:
            async for output in outputs:
                self.latest[number] = output
                self._changed[number] = None
                self._news.set()
                num_tokens = sum(len(choice.token_ids) for choice in output.outputs)
                now = asyncio.get_running_loop().time()
                if num_tokens > num_before:
                    timeline.marks.setdefault("first_token", now)
                    timeline.marks["last_token"] = now
                    timeline.num_generated_tokens += num_tokens - num_before
                    if begin is not None:
                        metrics.observe("inter_token", (now - begin) / (num_tokens - num_before))
                    begin, num_before = now, num_tokens

    def _end(self) -> None:
        timeline = self._timeline
        if "finished" in timeline.marks:
            return
        timeline.mark("finished")
        outputs = [output for output in self.latest if output is not None]
        timeline.num_cached_tokens = sum(output.num_cached_tokens for output in outputs)
        timeline.finish_reasons = [str(c.finish_reason or "abort") for o in outputs for c in o.outputs]
        self._server.metrics.request_ended(timeline)


def _within(params: SamplingParams, limits: Limits) -> SamplingParams:
    """Sampling values within the server's limits."""
    most, seconds = limits.max_output_tokens, limits.request_timeout_s
    if most is not None and (params.max_tokens is None or params.max_tokens > most):
        if params.max_tokens is not None:
            raise InvalidRequestError(f"this server gives at most {most}, got {params.max_tokens}", param="max_tokens")
        params = replace(params, max_tokens=most)
    if seconds is not None and (params.deadline_s is None or params.deadline_s > seconds):
        params = replace(params, deadline_s=seconds)
    return params


def _raise_failure(output: RequestOutput) -> None:
    if output.error is not None:
        raise output.error
    for choice in output.outputs:
        if choice.finish_reason is FinishReason.ABORT and choice.stop_reason != "deadline":
            raise EngineStoppedError("was shut down")
