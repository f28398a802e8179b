"""The one way in which pages and terminals write a duration. Pure."""

from __future__ import annotations


def in_words(seconds: float) -> str:
    """Return seconds as a readable duration: 45 s, 12 min, 3 h 20 min, 4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
