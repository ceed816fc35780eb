"""Gemma 1, 2 and 3: scaled embeddings, GELU, norms of 1 + weight; windows and soft caps in 2 and 3."""
