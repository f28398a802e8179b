"""The HTML pages of training."""
