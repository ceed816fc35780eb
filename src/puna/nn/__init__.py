"""Modules that build graphs."""
