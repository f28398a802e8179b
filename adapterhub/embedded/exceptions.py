"""The exception that aborts a start."""

from __future__ import annotations


class StartError(Exception):
    """Raised when AdapterHub cannot start or be stopped; its message names cause and fix."""
