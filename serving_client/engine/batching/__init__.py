"""Continuous batching: sequences, their KV cache, sampling, and the loop that adds a token to each."""
