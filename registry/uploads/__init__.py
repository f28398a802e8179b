"""Uploaded adapters: files, archives and the inbox on the server, and the check of their weights."""
