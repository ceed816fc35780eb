"""Seed-OSS: Llama with biases on Q, K and V, and names of its own in GGUF files."""
