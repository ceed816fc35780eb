"""InternLM 1, 2 and 3: Llama with biases (1, and 3 where stated), or with Q, K and V grouped by KV head (2)."""
