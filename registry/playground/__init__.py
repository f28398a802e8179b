"""Prompts sent through the router, for the playground and for blind tests."""
