"""Ways in: the command line and the class `LLM`."""
