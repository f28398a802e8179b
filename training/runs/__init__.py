"""A training run as users request it."""
