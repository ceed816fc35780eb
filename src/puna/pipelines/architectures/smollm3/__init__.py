"""SmolLM3: Llama where every fourth layer rotates nothing."""
