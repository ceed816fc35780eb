"""Llama 3 transformer architecture for text generation."""
