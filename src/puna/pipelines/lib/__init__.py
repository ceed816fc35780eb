"""Contracts and values that pipelines and architectures share."""
