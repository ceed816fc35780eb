"""Phi-3, Phi-3.5 and Phi-4: Llama with stacked matrices, LongRoPE, a sliding window and partial rotation."""
