"""Uploaded adapters: the inbox on the server, and the check of their weights."""
