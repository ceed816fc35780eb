"""Ernie 4.5, the dense one: Llama whose rotated pairs are neighbours in every file."""
