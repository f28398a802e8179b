"""The one way in which pages and messages count things. Pure."""

from __future__ import annotations

from decimal import Decimal

IRREGULAR = {"person": "people", "child": "children", "index": "indices"}


def counted(number: float | Decimal, noun: str, plural: str = "") -> str:
    """Return the number with its noun: "1 row", "1,234 rows", "0 analyses".

    The noun may be a phrase; one whose plural is not at its end, such as "request a second", needs its `plural`.
    """
    return f"{number:,.10g} {noun if number == 1 else plural or in_plural(noun)}"


def in_plural(noun: str) -> str:
    """Return the plural of an English noun, or of a phrase that ends in one."""
    before, _, last = noun.rpartition(" ")
    if last in IRREGULAR:
        ending = IRREGULAR[last]
    elif last.endswith("is"):
        ending = f"{last[:-2]}es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        ending = f"{last[:-1]}ies"
    else:
        ending = f"{last}es" if last.endswith(("s", "x", "ch", "sh")) else f"{last}s"
    return f"{before} {ending}".lstrip()
