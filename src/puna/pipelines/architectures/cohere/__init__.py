"""Cohere's Command R and R7B: one layer norm for attention and MLP side by side; R7B has windows."""
