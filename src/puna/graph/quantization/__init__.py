"""Quantization encodings and their block formats."""
