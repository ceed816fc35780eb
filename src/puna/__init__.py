"""Puna runs Llama-shaped language models on CPUs."""

__version__ = "0.1.0"
