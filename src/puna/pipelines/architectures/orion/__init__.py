"""Orion: Llama with layer norm, weight and bias."""
