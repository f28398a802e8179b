"""Regular expressions in requests, checked as the processes that run them will compile them."""

from __future__ import annotations

from collections.abc import Callable

from serving_client.regex import LONGEST, BadPattern, compiled


def pattern_fault(pattern: str) -> str:
    """Return the reason why RE2 cannot compile or run the pattern; empty if it can."""
    try:
        compiled(pattern)
    except BadPattern as error:
        return f"not a regular expression: {error}."
    return ""


def matcher(pattern: str, longest: int = LONGEST) -> Callable[[str], bool]:
    """Return a test of whether the pattern matches anywhere in a text.

    Raises ValueError if RE2 cannot compile it, or it has more than `longest` characters.
    """
    search = compiled(pattern, longest).search
    return lambda text: search(text) is not None
