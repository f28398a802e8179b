"""Training over REST."""
