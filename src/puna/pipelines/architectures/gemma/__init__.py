"""Gemma 1 and 3: scaled embeddings, GELU, norms of 1 + weight; Gemma 3 has windows with a rotation of their own."""
