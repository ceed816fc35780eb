"""OLMo: Llama with layer norms that have no weights, and projections that may be clamped."""
