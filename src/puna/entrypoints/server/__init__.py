"""The HTTP server: OpenAI's interface and others over `AsyncLLM`. See docs/server.md."""
