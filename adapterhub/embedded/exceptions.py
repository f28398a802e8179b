"""The exception that aborts a start."""

from __future__ import annotations


class StartError(Exception):
    """Raised when AdapterHub cannot start; the message is one sentence that names the cause and the fix."""
