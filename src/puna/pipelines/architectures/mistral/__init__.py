"""Mistral: Llama with a sliding window, and heads that need not divide the hidden size."""
