"""Low-rank adapters: files, what is loaded, which rows of a step they are for."""
