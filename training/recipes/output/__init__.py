"""Code that writes a run's output: an adapter, a LoRA converted from weight changes, or the whole model."""
