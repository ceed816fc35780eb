"""`SamplingConfig`: what the sampler can do, decided when the engine starts."""

from __future__ import annotations

from dataclasses import dataclass

from puna.dtype import DType
from puna.errors import InvalidRequestError

__all__ = ["SamplingConfig"]


@dataclass(kw_only=True)
class SamplingConfig:
    """Abilities of the sampler.

    Attributes:
        in_dtype: Element type of the logits it reads; float32.
        out_dtype: Element type of the probabilities it makes; float32.
        enable_structured_output: Whether requests may ask for JSON or a grammar.
        enable_variable_logits: Whether a step may return several rows of logits per request.
        enable_penalties: Whether requests may penalize repetition. They always may: it costs requests without
            penalties nothing.
        enable_min_tokens: Whether requests may ask for a smallest number of tokens. They always may.
        sample_on_host: Whether tokens are chosen on the host. Here the device is the host, so both values mean the
            same.

    Raises:
        InvalidRequestError: an element type other than float32.
    """

    in_dtype: DType = DType.float32
    out_dtype: DType = DType.float32
    enable_structured_output: bool = False
    enable_variable_logits: bool = False
    enable_penalties: bool = False
    enable_min_tokens: bool = False
    sample_on_host: bool = False

    def __post_init__(self) -> None:
        for name in ("in_dtype", "out_dtype"):
            value = getattr(self, name)
            if value is not DType.float32:
                raise InvalidRequestError(f"must be float32, got {value}", param=name)

    def require_implemented(self) -> None:
        """Refuse what no sampler does yet.

        Raises:
            InvalidRequestError: structured output or variable logits are asked for.
        """
        for name in ("enable_structured_output", "enable_variable_logits"):
            if getattr(self, name):
                raise InvalidRequestError("is not implemented", param=name)
