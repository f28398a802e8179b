"""The one way in which pages and terminals write a duration. Pure."""

from __future__ import annotations


def in_words(seconds: float) -> str:
    """Return seconds as a readable duration: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
