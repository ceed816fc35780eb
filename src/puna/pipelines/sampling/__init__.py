"""From logits to tokens. Every row is treated as if it were alone; docs/sampling.md states the order of all filters."""

from puna.pipelines.sampling.allowed import AllowedTokensFinder
from puna.pipelines.sampling.row import AllowedTokens, SamplingRow
from puna.pipelines.sampling.sampler import NonFiniteLogitsError, SampledTokens, Sampler

__all__ = ["AllowedTokens", "AllowedTokensFinder", "NonFiniteLogitsError", "SampledTokens", "Sampler", "SamplingRow"]
