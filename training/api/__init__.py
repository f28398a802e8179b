"""The REST API of training."""
