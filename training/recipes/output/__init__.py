"""What a run writes: an adapter, low-rank weights, or the whole model."""
