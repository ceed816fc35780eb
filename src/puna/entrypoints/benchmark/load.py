"""Load for a server: random prompts, when they are sent, and what a client sees of each."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from puna.entrypoints.benchmark.http_stream import Endpoint, HttpFailureError, fetch_json, stream_events
from puna.errors import InvalidRequestError

__all__ = ["Load", "Seen", "make_prompts", "run_load", "served_model"]

# Common words of English: most tokenizers have a token for each, so that words are about tokens.
_TEXT: Final = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea body back parent "
    "face others level office door health person art war history party result change morning reason research girl guy "
    "moment air teacher force education"
)
_WORDS: Final = _TEXT.split()


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent.

    Attributes:
        model: Name in requests.
        num_prompts: How many requests.
        input_len: Words of a prompt behind the shared beginning, each about a token.
        output_len: Tokens of an answer; the end of text is ignored where the server knows how.
        prefix_len: Words that prompts of a group share at their beginning; 0: none.
        num_prefixes: How many groups.
        max_concurrency: So many requests are open at most; None: no bound.
        request_rate: Requests per second, at the times of a Poisson process; None: as soon as there is room.
        seed: Of prompts and times.
        is_chat: Whether requests are chats; completions otherwise.
        timeout_s: A request that takes longer failed.
    """

    model: str
    num_prompts: int
    input_len: int
    output_len: int
    prefix_len: int = 0
    num_prefixes: int = 1
    max_concurrency: int | None = None
    request_rate: float | None = None
    seed: int = 0
    is_chat: bool = False
    timeout_s: float = 600.0


@dataclass(slots=True)
class Seen:
    """What a client saw of one request; times are of `time.perf_counter`, in seconds.

    Attributes:
        sent: When it was sent.
        times: When each piece of text came.
        ended: When the answer was whole.
        prompt_tokens, output_tokens: As the server counted them.
        is_counted: Whether the server counted; a piece of text is taken as a token otherwise.
        failure: Why there is no answer; None: there is.
    """

    sent: float
    times: list[float] = field(default_factory=list)
    ended: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    is_counted: bool = False
    failure: str | None = None


def make_prompts(load: Load) -> list[str]:
    """The prompts of a load: the same for the same seed and lengths."""
    draw = random.Random(load.seed)

    def words(count: int) -> str:
        return " ".join(draw.choices(_WORDS, k=count))

    prefixes = [words(load.prefix_len) for _ in range(load.num_prefixes)]
    return [f"{prefixes[i % len(prefixes)]} {words(load.input_len)}".strip() for i in range(load.num_prompts)]


async def served_model(endpoint: Endpoint) -> str:
    """The name of the first model that a server has.

    Raises:
        HttpFailureError: It cannot be asked.
        InvalidRequestError: It names none.
    """
    answer = await fetch_json(endpoint, "/models")
    try:
        return str(answer["data"][0]["id"])
    except (KeyError, IndexError, TypeError) as error:
        raise InvalidRequestError("the server lists no model; --model names one", param="--model") from error


async def run_load(endpoint: Endpoint, load: Load, prompts: Sequence[str]) -> list[Seen]:
    """Sends prompts and returns what was seen of each, in the order in which they were sent.

    The waiting for room under `max_concurrency` is the sender's own and counts for no request.
    """
    room = asyncio.Semaphore(load.max_concurrency or len(prompts))
    due = _times(load)
    begin = time.perf_counter()

    async def one(prompt: str) -> Seen:
        try:
            return await _request(endpoint, load, prompt)
        finally:
            room.release()

    tasks = []
    async with asyncio.TaskGroup() as group:
        for prompt in prompts:
            await asyncio.sleep(max(0.0, begin + next(due) - time.perf_counter()))
            await room.acquire()
            tasks.append(group.create_task(one(prompt)))
    return [task.result() for task in tasks]


def _times(load: Load) -> Iterator[float]:
    """When requests are due, in seconds from the beginning."""
    draw, now = random.Random(load.seed + 1), 0.0
    while True:
        yield now
        if load.request_rate is not None:
            now += draw.expovariate(load.request_rate)


async def _request(endpoint: Endpoint, load: Load, prompt: str) -> Seen:
    path, body = _body(load, prompt)
    seen = Seen(time.perf_counter())
    try:
        async with asyncio.timeout(load.timeout_s):
            async for when, data in stream_events(endpoint, path, body):
                seen.ended = when
                if data != "[DONE]":
                    _note(seen, when, json.loads(data))
        if not seen.times:
            seen.failure = "the answer has no text"
    except HttpFailureError as error:
        seen.failure = str(error)
    except TimeoutError:
        seen.failure = f"no whole answer within {load.timeout_s:g} s"
    except (ValueError, KeyError, TypeError, AttributeError):
        seen.failure = "the answer is no stream of OpenAI's chunks"
    if not seen.is_counted:
        seen.output_tokens = len(seen.times)
    return seen


def _body(load: Load, prompt: str) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {
        "model": load.model,
        "max_tokens": load.output_len,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if load.is_chat:
        return "/chat/completions", {**body, "messages": [{"role": "user", "content": prompt}]}
    return "/completions", {**body, "prompt": prompt}


def _note(seen: Seen, when: float, chunk: dict[str, Any]) -> None:
    """Takes what a chunk says: text, usage, an error."""
    if "error" in chunk:
        error = chunk["error"]
        seen.failure = str(error.get("message", error) if isinstance(error, dict) else error)
    for choice in chunk.get("choices") or ():
        text = choice.get("text") or ""
        delta = choice.get("delta") or {}
        if text or delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning"):
            seen.times.append(when)
    usage = chunk.get("usage")
    if usage:
        seen.prompt_tokens, seen.output_tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        seen.is_counted = True
