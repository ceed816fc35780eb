"""The server's routes, a module for each interface; each lists its operations in `OPERATIONS`."""
