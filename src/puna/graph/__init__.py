"""Descriptions of what to compute: graphs, operations, weights."""
