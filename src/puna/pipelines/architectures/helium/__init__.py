"""Helium: Llama whose rotated pairs are neighbours in every file."""
