"""Shared code of all language-model programs: loading, tokenisation, loss, events and errors. No Django."""
