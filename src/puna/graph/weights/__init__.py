"""Weight files: safetensors and GGUF, read without copying."""
