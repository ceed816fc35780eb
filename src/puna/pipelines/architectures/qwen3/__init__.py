"""Qwen3: Qwen2 without biases, and norms of each head of queries and keys."""
