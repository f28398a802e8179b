"""Count of the characters of all texts in parsed JSON, at any depth. Pure."""

from __future__ import annotations

from typing import Any


def characters_in(value: Any, *, keys: bool = False) -> int:
    """Return the number of characters of all texts in the value; with `keys`, field names count too.

    Texts that begin with `data:` count 0: they hold an image or the like, which is no text of a prompt.
    """
    count, waiting = 0, [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            count += 0 if part.startswith("data:") else len(part)
        elif isinstance(part, dict):
            waiting += part.values()
            count += sum(map(len, part)) if keys else 0
        elif isinstance(part, list):
            waiting += part
    return count
