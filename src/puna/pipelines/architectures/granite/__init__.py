"""Granite: Llama with four multipliers, all of which the Llama configuration has."""
