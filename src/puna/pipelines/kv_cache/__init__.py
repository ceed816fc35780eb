"""The paged KV cache manager."""
