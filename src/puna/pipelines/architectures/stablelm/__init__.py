"""StableLM 2: layer norm with weight and bias, a quarter of each head is rotated."""
