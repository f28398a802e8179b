"""Validation of an adapter's files: their permitted content, checked against the base model. No Django."""
