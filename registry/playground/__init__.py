"""Prompts sent through the router, by a person who tries a version or in a blind test."""
