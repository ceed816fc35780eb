"""The OpenAI interface without a server: bodies of requests, of responses and of errors, and batch files."""
