"""Where a person or a program comes in."""
