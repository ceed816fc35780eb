"""Baichuan 7B, 1 and 2: Q, K and V in one matrix; Baichuan 2 normalizes the rows of its output matrix."""
