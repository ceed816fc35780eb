"""`PipelineRuntimeConfig`: options of scheduling and of the process around the model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, get_args

from puna.errors import InvalidRequestError

__all__ = ["PipelineRole", "PipelineRuntimeConfig"]

PipelineRole: TypeAlias = Literal["prefill_and_decode", "prefill_only", "decode_only"]

_CPU_MAX_BATCH_SIZE: Final = 1
_CHOOSE_STEPS: Final = -1
_CPU_NUM_STEPS: Final = 1

# What no accelerator-free machine has: refused as soon as it is asked for.
_ACCELERATOR_ONLY: Final = {
    "enable_overlap_scheduler": "overlaps host and accelerator; on cpu the host is the device",
    "device_graph_capture": "captures accelerator graphs; on cpu a step is one native call already",
}
# What the loop does not do: carried and checked here, refused when a pipeline is made of it.
_NOT_IMPLEMENTED: Final = (
    "min_batch_size_tg",
    "max_queue_size_tg",
    "max_batch_total_tokens",
    "chunked_prefill_min_chunk_size",
    "enable_in_flight_batching",
    "enable_prioritize_first_decode",
    "ce_delay_ms",
    "execute_empty_batches",
    "custom_architectures",
    "prefer_module_v3",
    "force",
    "zmq_endpoint_base",
    "allow_unsupported_logprobs",
    "allow_extra_request_fields",
)


@dataclass(kw_only=True)
class PipelineRuntimeConfig:
    """Options of scheduling and of the process around the model.

    Attributes:
        max_batch_size: Requests of a batch. None: 1 on CPU, never above `max_batch_input_tokens`.
        max_batch_input_tokens: Tokens that a step computes at most, all requests together.
        max_batch_total_tokens: Cap on the context of a batch, each request rounded up to whole pages, or None.
        max_queue_size_tg: Cap on requests that generate, or None.
        min_batch_size_tg: Soft floor of a decode batch, or None.
        enable_chunked_prefill: Whether a prompt may be read in several steps.
        chunked_prefill_min_chunk_size: Smallest chunk, in tokens.
        max_request_input_tokens: Most tokens of one request in a step; 0: no cap.
        enable_in_flight_batching: Whether decode rows are filled up with prompt rows.
        enable_prioritize_first_decode: Whether a request decodes right after its prompt.
        ce_delay_ms: Wait before a prompt batch, in milliseconds.
        enable_overlap_scheduler: Refused: it needs an accelerator.
        device_graph_capture: Refused: it needs an accelerator.
        kvcache_ce_watermark: Share of pages above which no new prompt is admitted beside other work, from 0 to 1.
        zmq_endpoint_base: Socket of a worker process, or None.
        defer_resolve: Whether the configuration is checked only when somebody calls `resolve`.
        pipeline_role: What this process does; `prefill_and_decode` is everything.
        execute_empty_batches: Whether a step runs without requests.
        custom_architectures: Modules that register further architectures.
        prefer_module_v3: Whether an architecture's newer form is chosen.
        force: Whether checks that warn are overruled.
        max_num_steps: Decode steps of one turn; -1: 1 on CPU.
        temperature: Default temperature of requests, or None.
        top_k: Default `top_k` of requests, or None.
        thinking_temperature: Default temperature inside reasoning, or None.
        tool_parser: Name of a parser of tool calls; None: the architecture's; `none`: none.
        reasoning_parser: Name of a parser of reasoning; None: the architecture's; `none`: none.
        allow_unsupported_logprobs: Whether a server answers null where log-probabilities cannot be given.
        allow_extra_request_fields: Whether a server ignores unknown request fields.

    Raises:
        InvalidRequestError: a value is out of range, or needs an accelerator.
    """

    max_batch_size: int | None = None
    max_batch_input_tokens: int = 8192
    max_batch_total_tokens: int | None = None
    max_queue_size_tg: int | None = None
    min_batch_size_tg: int | None = None
    enable_chunked_prefill: bool = True
    chunked_prefill_min_chunk_size: int = 0
    max_request_input_tokens: int = 0
    enable_in_flight_batching: bool = False
    enable_prioritize_first_decode: bool = False
    ce_delay_ms: float = 0.0
    enable_overlap_scheduler: bool = False
    device_graph_capture: bool = False
    kvcache_ce_watermark: float = 0.95
    zmq_endpoint_base: str | None = None
    defer_resolve: bool = False
    pipeline_role: PipelineRole = "prefill_and_decode"
    execute_empty_batches: bool = False
    custom_architectures: list[str] = field(default_factory=list)
    prefer_module_v3: bool = False
    force: bool = False
    max_num_steps: int = _CHOOSE_STEPS
    temperature: float | None = None
    top_k: int | None = None
    thinking_temperature: float | None = None
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    allow_unsupported_logprobs: bool = False
    allow_extra_request_fields: bool = False

    def __post_init__(self) -> None:
        self._check_sizes()
        for name in ("ce_delay_ms", "kvcache_ce_watermark"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidRequestError(f"must be at least 0, got {value}", param=name)
        watermark = self.kvcache_ce_watermark
        if watermark > 1:
            raise InvalidRequestError(f"must be at most 1, got {watermark}", param="kvcache_ce_watermark")
        if self.pipeline_role not in get_args(PipelineRole):
            known = ", ".join(get_args(PipelineRole))
            raise InvalidRequestError(f"{self.pipeline_role!r} is unknown; there is: {known}", param="pipeline_role")
        for name, reason in _ACCELERATOR_ONLY.items():
            if getattr(self, name):
                raise InvalidRequestError(f"cannot be used: it {reason}", param=name)

    @property
    def num_steps(self) -> int:
        """Decode steps of one turn, with -1 resolved."""
        return _CPU_NUM_STEPS if self.max_num_steps == _CHOOSE_STEPS else self.max_num_steps

    def resolve(self, max_seq_len: int | None = None) -> None:
        """Set what was left open, and refuse what no loop does yet.

        Args:
            max_seq_len: The model's length where it is known: `max_batch_total_tokens` must not be below it.

        Raises:
            InvalidRequestError: values contradict each other, or one of them is not implemented.
        """
        if self.max_batch_size is None:
            self.max_batch_size = min(_CPU_MAX_BATCH_SIZE, self.max_batch_input_tokens)
        total = self.max_batch_total_tokens
        if max_seq_len is not None and total is not None and total < max_seq_len:
            raise InvalidRequestError(
                f"{total} is below the model's length of {max_seq_len}", param="max_batch_total_tokens"
            )
        if self.pipeline_role != "prefill_and_decode":
            raise InvalidRequestError(f"{self.pipeline_role!r} is not implemented", param="pipeline_role")
        for name in ("tool_parser", "reasoning_parser"):
            if getattr(self, name) not in (None, "none"):
                raise InvalidRequestError(f"no parser {getattr(self, name)!r}; there is: none", param=name)
        defaults = PipelineRuntimeConfig()
        for name in _NOT_IMPLEMENTED:
            if getattr(self, name) != getattr(defaults, name):
                raise InvalidRequestError("is not implemented", param=name)

    def _check_sizes(self) -> None:
        for name in ("max_batch_size", "max_batch_input_tokens", "max_batch_total_tokens", "max_queue_size_tg"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidRequestError(f"must be at least 1, got {value}", param=name)
        for name in ("min_batch_size_tg", "chunked_prefill_min_chunk_size", "max_request_input_tokens"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise InvalidRequestError(f"must be at least 0, got {value}", param=name)
        if self.max_batch_size is not None and self.max_batch_size > self.max_batch_input_tokens:
            raise InvalidRequestError(
                f"{self.max_batch_size} is above max_batch_input_tokens ({self.max_batch_input_tokens})",
                param="max_batch_size",
            )
        if self.max_num_steps != _CHOOSE_STEPS and self.max_num_steps < 1:
            raise InvalidRequestError(f"must be -1 or at least 1, got {self.max_num_steps}", param="max_num_steps")
