"""EXAONE 3 and 3.5: Llama under other names."""
