"""Retrieval of a base model's files into the models folder."""
