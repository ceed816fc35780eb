"""`SpeculativeConfig`: options of speculative decoding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from puna.errors import InvalidRequestError

__all__ = ["RejectionSamplingStrategy", "SpeculativeConfig", "SpeculativeMethod"]

SpeculativeMethod: TypeAlias = Literal["standalone", "eagle", "mtp"]
RejectionSamplingStrategy: TypeAlias = Literal["residual", "typical-acceptance"]

_DEFAULT_DRAFT_TOKENS: Final = 2


@dataclass(kw_only=True)
class SpeculativeConfig:
    """Options of speculative decoding.

    Attributes:
        speculative_method: Who drafts: a model of its own (`standalone`), or one that reads the target's hidden states.
        num_speculative_tokens: Draft tokens of a cycle.
        rejection_sampling_strategy: How drafts are accepted. None: `residual` for `standalone`, else
            `typical-acceptance`.
        synthetic_acceptance_rate: Accept at random with this probability, for measurements, or None.

    Raises:
        InvalidRequestError: an unknown name, or a number out of range.
    """

    speculative_method: SpeculativeMethod
    num_speculative_tokens: int = _DEFAULT_DRAFT_TOKENS
    rejection_sampling_strategy: RejectionSamplingStrategy | None = None
    synthetic_acceptance_rate: float | None = None

    def __post_init__(self) -> None:
        _require_choice("speculative_method", self.speculative_method, get_args(SpeculativeMethod))
        if self.num_speculative_tokens < 1:
            raise InvalidRequestError(
                f"must be at least 1, got {self.num_speculative_tokens}", param="num_speculative_tokens"
            )
        if self.rejection_sampling_strategy is None:
            is_standalone = self.speculative_method == "standalone"
            self.rejection_sampling_strategy = "residual" if is_standalone else "typical-acceptance"
        _require_choice(
            "rejection_sampling_strategy", self.rejection_sampling_strategy, get_args(RejectionSamplingStrategy)
        )
        rate = self.synthetic_acceptance_rate
        if rate is not None and not (math.isfinite(rate) and 0 <= rate <= 1):
            raise InvalidRequestError(f"must be from 0 to 1, got {rate}", param="synthetic_acceptance_rate")

    @property
    def reads_hidden_states(self) -> bool:
        """Whether the draft reads the target's hidden states."""
        return self.speculative_method in ("eagle", "mtp")


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidRequestError(f"{value!r} is unknown; there is: {', '.join(choices)}", param=name)
