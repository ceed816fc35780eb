"""`GenerateRequest`: what an entrypoint passes on, a prompt and how to answer it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NewType

from puna.errors import InvalidRequestError
from puna.pipelines.sampling_params import SamplingParams

__all__ = ["GenerateRequest", "RequestID", "new_request_id"]

RequestID = NewType("RequestID", str)
"""Opaque name of a request, unique within a process and across restarts."""


def new_request_id() -> RequestID:
    """A fresh identity."""
    return RequestID(uuid.uuid4().hex)


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """What an entrypoint passes on: a prompt in exactly one of three forms, and how to answer it.

    Attributes:
        text: A prompt as it is.
        messages: A conversation, for the chat template.
        token_ids: A prompt that is tokenized already.
        sampling_params: How tokens are chosen.
        model_name: The name the client used: the model, or an adapter of it. None: the model.
        adapter: The adapter whose weights it is computed with, by name; None: that of `model_name`, if it names one.
        request_id: Identity of the request.
        chat_template_kwargs: What the chat template is rendered with: `tools`, `documents`, `add_generation_prompt`,
            `variables`.
        tools: Tools that the answer to messages may call: objects of `type` function and a `function` of `name`,
            `description`, `parameters` (a JSON schema) and `strict` (its calls are held to the schema).
        tool_choice: `auto`; `none`; `required`: at least one call; or this one, as an object,
            `{"type": "function", "function": {"name": ...}}`. Calls that must come are held to their schemas.
        parallel_tool_calls: Whether an answer may hold several calls.
        priority: Requests with a lower number go first.
        cache_salt: Separates the request's cached prefix from those of others, or None.

    Raises:
        InvalidRequestError: not exactly one form of prompt, or a value out of range.
    """

    text: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    token_ids: Sequence[int] | None = None
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    model_name: str | None = None
    adapter: str | None = None
    request_id: RequestID = field(default_factory=new_request_id)
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: str | Mapping[str, Any] = "auto"
    parallel_tool_calls: bool = True
    priority: int = 0
    cache_salt: str | None = None

    def __post_init__(self) -> None:
        forms = {"text": self.text, "messages": self.messages, "token_ids": self.token_ids}
        given = [name for name, value in forms.items() if value is not None]
        if len(given) != 1:
            expected = ", ".join(forms)
            raise InvalidRequestError(f"exactly one of {expected} is needed, got {given or 'none'}", param="prompt")
        if not forms[given[0]] and given[0] != "text":
            raise InvalidRequestError("must not be empty", param=given[0])
