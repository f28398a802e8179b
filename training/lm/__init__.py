"""Shared code of all programs on language models: loading, tokenisation, loss, events and errors. No Django."""
