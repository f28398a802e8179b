"""The keys of `rank_pattern` and `alpha_pattern`, read as PEFT reads them. Pure.

A key is a regular expression that has to match from the start of a module's name, or after one of its dots, to the end;
the first key that matches counts. Plain names are looked up; other keys, which strangers wrote, are run by RE2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from adapterhub.core.regex_check import matcher

PLAIN = re.compile(r"(\^?)(\w+(?:(?:\.\w+)*|(?:\\\.\w+)*))", re.ASCII)
# PEFT puts a key behind a beginning of its own, where Python takes no flags for the whole pattern.
FLAGS = re.compile(r"\(\?[a-zA-Z]+\)")
MOST_PATTERNS = 64


class PatternKeys:
    """The entries of a rank or alpha pattern, prepared for looking up many modules; None is an empty pattern.

    The first key that matches decides, as in PEFT. Raises ValueError for a key that RE2 cannot run, and for more than
    MOST_PATTERNS keys that are no plain names.
    """

    def __init__(self, pattern: Mapping[str, Any] | None) -> None:
        self.keys, self.values = list(pattern or {}), list((pattern or {}).values())
        self.names: dict[str, int] = {}
        self.patterns: list[tuple[int, Callable[[str], bool]]] = []
        for place, key in enumerate(self.keys):
            if plain := PLAIN.fullmatch(key):
                self.names.setdefault(plain[1] + plain[2].replace("\\.", "."), place)
            elif len(self.patterns) == MOST_PATTERNS:
                raise ValueError(f"more than {MOST_PATTERNS} keys are patterns: name the modules")
            else:
                self.patterns.append((place, compiled(key)))

    def place(self, module: str) -> int | None:
        """Return the position of the first entry whose key matches the module; None if none does."""
        parts = module.split(".")
        names = ("^" + module, *(".".join(parts[start:]) for start in range(len(parts))))
        places = [self.names[name] for name in names if name in self.names]
        places += [place for place, matches in self.patterns if matches(module)]
        return min(places, default=None)

    def value(self, module: str, default: Any) -> Any:
        """Return the value of the first entry whose key matches the module, else the default."""
        place = self.place(module)
        return default if place is None else self.values[place]

    def unused(self, modules: list[str]) -> list[str]:
        """Return the keys that are the first match of none of the modules."""
        used = {self.place(module) for module in modules}
        return [key for place, key in enumerate(self.keys) if place not in used]


def compiled(key: str) -> Callable[[str], bool]:
    """Return a predicate that is True for module names which the key matches, whole or from after a dot.

    Raises ValueError, which quotes the key, if RE2 cannot run it, or PEFT cannot compile it.
    """
    try:
        if flags := FLAGS.search(key):
            raise ValueError(f"{flags[0]} cannot stand in a key")
        return matcher(rf"^(?:.*\.)?(?:{key})$")
    except ValueError as error:
        quoted = key[:100].encode("ascii", "backslashreplace").decode()
        raise ValueError(f"{quoted!r} cannot be evaluated: {error}") from None
