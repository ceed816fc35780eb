"""EXAONE 4: norms behind the branches, norms of heads, and in the 32B model windows on the layers that rotate."""
