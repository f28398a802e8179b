"""The running batch: sequences, their cache, sampling, and the loop that adds a token to each."""
