"""Output of a run: an adapter, low-rank weights, or the whole model."""
