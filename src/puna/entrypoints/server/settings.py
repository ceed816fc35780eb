"""What a server is told when it starts: names, limits, keys."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

from puna.errors import InvalidRequestError
from puna.pipelines.sampling_params import SamplingParamsInput
from puna.pipelines.sampling_ranges import MAX_CHOICES, MAX_LOGPROBS, MAX_STOPS

__all__ = ["TEMPLATE_VARIABLES", "Limits", "ServerSettings", "is_loopback"]

TEMPLATE_VARIABLES: Final = frozenset({"enable_thinking", "thinking", "reasoning_effort", "date_string"})
"""Variables of chat templates that requests may set, unless others are named."""

# Limits that the engine has itself: a server may only lower them.
_HIGHEST: Final = {"max_n": MAX_CHOICES, "max_top_logprobs": MAX_LOGPROBS, "max_stop": MAX_STOPS}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request, and all of them together, may take. Everything is checked before the engine sees a request.

    Attributes:
        max_header_bytes: Request line and headers; more is answered with 431.
        max_body_bytes: A JSON body; more is answered with 413.
        max_file_bytes: An uploaded file; more is answered with 413.
        max_json_depth: How deep objects and lists may be nested.
        max_prompt_tokens: Tokens of one prompt; None: what the context holds.
        max_output_tokens: Tokens of one answer, also of requests that state no `max_tokens`; None: what the context
            holds.
        max_n: Continuations of one prompt, `n` and `best_of`.
        max_choices: Continuations of one request: its prompts times `n` or `best_of`.
        max_prompts: Prompts, inputs or documents of one request.
        max_stop: Stop strings.
        max_logit_bias: Entries of `logit_bias`.
        max_top_logprobs: Likeliest tokens that are reported at each place.
        max_queue_size: Requests that wait; one more is answered with 429.
        max_connections: Open connections; one more is answered with 503.
        queue_timeout_s: How long a request may wait to begin, in seconds; then it is answered with 503.
        request_timeout_s: How long a request may run, in seconds; then it ends with what it has. None: no limit.
        header_timeout_s: How long headers may take, and how long a connection may be idle, in seconds.
        body_timeout_s: How long a body may take, in seconds; then it is answered with 408.
        write_timeout_s: How long a client may not read what it is sent, in seconds; then it is cut off.
        drain_timeout_s: How long answers may take to end after SIGTERM, in seconds.
        keepalive_interval_s: Seconds of silence after which a stream gets a comment line.

    Raises:
        InvalidRequestError: a value is out of range.
    """

    max_header_bytes: int = 32 << 10
    max_body_bytes: int = 8 << 20
    max_file_bytes: int = 512 << 20
    max_json_depth: int = 64
    max_prompt_tokens: int | None = None
    max_output_tokens: int | None = None
    max_n: int = MAX_CHOICES
    max_choices: int = 512
    max_prompts: int = 2048
    max_stop: int = MAX_STOPS
    max_logit_bias: int = 1024
    max_top_logprobs: int = MAX_LOGPROBS
    max_queue_size: int = 512
    max_connections: int = 2048
    queue_timeout_s: float = 300.0
    request_timeout_s: float | None = None
    header_timeout_s: float = 30.0
    body_timeout_s: float = 60.0
    write_timeout_s: float = 60.0
    drain_timeout_s: float = 60.0
    keepalive_interval_s: float = 15.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            low = 0 if item.name in ("max_top_logprobs", "max_logit_bias", "max_stop") else 1
            if value is not None and (value <= 0 if item.name.endswith("_s") else value < low):
                bound = "above 0" if item.name.endswith("_s") else f"at least {low}"
                raise InvalidRequestError(f"must be {bound}, got {value}", param=item.name)
            if item.name in _HIGHEST and value > _HIGHEST[item.name]:
                raise InvalidRequestError(f"must be at most {_HIGHEST[item.name]}, got {value}", param=item.name)


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a server behaves, apart from its model.

    Attributes:
        model_names: What requests may call the model; the first one is what answers call it.
        limits: What requests may take.
        sampling: Sampling values of requests that state none; the checkpoint's stand behind them.
        api_keys: Name -> key. Empty: nobody needs one.
        allowed_origins: Origins whose pages may use the server (CORS); `*` for all. Empty: none.
        is_strict: Unknown fields are refused rather than named in a header and the log.
        template_variables: Variables of the chat template that requests may set (`chat_template_kwargs`).
        has_vllm_metrics: `/metrics` has the names of vLLM too.
        storage_dir: Where files and batches are kept; None: they are not offered.
        num_timelines: How many requests `/v1/requests` remembers.
        max_stored_bytes: Memory of stored responses.
        max_in_engine: Requests that are given to the engine at once; the rest waits in the fair queue.
        root_path: Prefix under which a proxy shows the server.
        lora_dir: Where requests may load adapters from; None: they may not.
        otlp_traces_endpoint: Where spans of requests are sent by OTLP over HTTP; None: nowhere.
    """

    model_names: tuple[str, ...]
    limits: Limits = field(default_factory=Limits)
    sampling: SamplingParamsInput = field(default_factory=SamplingParamsInput)
    api_keys: dict[str, str] = field(default_factory=dict)
    allowed_origins: tuple[str, ...] = ()
    is_strict: bool = False
    template_variables: frozenset[str] = TEMPLATE_VARIABLES
    has_vllm_metrics: bool = False
    storage_dir: Path | None = None
    num_timelines: int = 1000
    max_stored_bytes: int = 64 << 20
    max_in_engine: int = 64
    root_path: str = ""
    lora_dir: Path | None = None
    otlp_traces_endpoint: str | None = None

    @property
    def model_name(self) -> str:
        """What answers call the model."""
        return self.model_names[0]


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
