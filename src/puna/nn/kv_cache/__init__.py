"""Sizes and inputs of the paged KV cache."""
