"""Backup and restore of an installation: its rows, what artifacts they refer to, and its keys, in one folder."""
