"""Qwen2 and Qwen2.5: Llama with biases on Q, K and V, and windows on the upper layers where they are used."""
