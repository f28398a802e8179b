"""The modules that a configuration adapts, as PEFT reads it. Patterns are run by RE2, never by Python's `re`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from adapterhub.core.regex_check import matcher

ALL_LINEAR = "all-linear"
# The modules that PEFT adapts in Llama-like models when a configuration names none.
DEFAULT = ("q_proj", "v_proj")
LONGEST_PATTERN, MOST_ASSERTIONS = 4000, 8
ASSERTION = re.compile(r"\(\?(?P<sign>[=!])")
# An escaped character, a class of characters, or a single one.
TOKEN = re.compile(r"\\.|\[\^?\]?(?:[^\]\\]|\\.)*+\]|.", re.DOTALL)
Config = dict[str, Any]


class Undecided(Exception):
    """Raised when RE2 cannot run a pattern of the configuration; the message says why."""


def adapted_modules(config: Config, modules: Iterable[str]) -> set[str]:
    """Return those of the base model's linear `modules` that PEFT adapts.

    Without target_modules they are those of DEFAULT. Raises Undecided for a pattern that RE2 cannot run.
    """
    targets = config.get("target_modules")
    if targets is None:
        targets = DEFAULT
    return {module for module in modules if is_adapted(config, targets, module)}


def is_adapted(config: Config, targets: Any, module: str) -> bool:
    """Return True if PEFT adapts the module: `targets` name it, its layer is chosen, and it is not excluded.

    `targets` are a pattern, `all-linear`, or a list of names. The choice of layers counts only for modules that a list
    names by their last parts. Raises Undecided if RE2 cannot run a pattern.
    """
    excluded = config.get("exclude_modules") or ()
    if names_module(excluded, module):
        return False
    if isinstance(targets, str):
        return targets.lower() == ALL_LINEAR or whole_match(targets, module)
    if module in targets:
        return True
    return names_module(targets, module) and is_in_layers(config, module)


def names_module(targets: Any, module: str) -> bool:
    """Return True if a list has the module's name or its last parts, or if a pattern matches the whole name.

    Raises Undecided if RE2 cannot run the pattern.
    """
    if isinstance(targets, str):
        return whole_match(targets, module)
    return any(module == name or module.endswith(f".{name}") for name in targets)


def whole_match(pattern: str, text: str) -> bool:
    r"""Return True if the pattern matches the whole text. Raises Undecided if RE2 cannot run the pattern.

    Look-ahead at its start, with which trainers leave a model's other parts out, is run as patterns of their own. A
    `\Z` at the end, which RE2 does not know, is dropped: it holds for every match of the whole text.
    """
    assertions, rest = look_ahead(pattern)
    if rest.endswith(r"\Z") and not rest.endswith(r"\\Z"):
        rest = rest.removesuffix(r"\Z")
    try:
        holds = all(matcher(f"^(?:{inner})", LONGEST_PATTERN)(text) == wanted for wanted, inner in assertions)
        return matcher(f"^(?:{rest})$", LONGEST_PATTERN)(text) and holds
    except ValueError as error:
        raise Undecided(str(error)) from None


@lru_cache(maxsize=64)
def look_ahead(pattern: str) -> tuple[tuple[tuple[bool, str], ...], str]:
    """Return the look-ahead at the pattern's start and the rest of the pattern.

    Each assertion is (True if it has to match, its pattern). A pattern with alternatives outside of all groups is
    returned whole, because the look-ahead would belong to the first of them alone; so is a very long one.
    """
    assertions, rest = [], pattern.removeprefix("^")
    if len(pattern) > LONGEST_PATTERN:
        return (), pattern
    while (match := ASSERTION.match(rest)) and (end := closing(rest)):
        assertions.append((match["sign"] == "=", rest[match.end() : end - 1]))
        rest = rest[end:]
    is_apart = rest[:1] not in ("*", "+", "?", "{") and all(symbol != "|" for _, symbol in at_top(rest))
    return (tuple(assertions), rest) if is_apart and len(assertions) <= MOST_ASSERTIONS else ((), pattern)


def closing(text: str) -> int:
    """Return the position after the bracket that closes the group at the start of the text; 0 if none does."""
    return next((place for place, symbol in at_top(text) if symbol == ")"), 0)


def at_top(pattern: str) -> Iterator[tuple[int, str]]:
    """Yield (position after it, token) for each token outside of groups, and for the closing bracket of each group."""
    depth = 0
    for token in TOKEN.finditer(pattern):
        depth += (token[0] == "(") - (token[0] == ")")
        if depth == 0:
            yield token.end(), token[0]


def is_in_layers(config: Config, module: str) -> bool:
    """Return True if the module's layer is in `layers_to_transform`, or if that is missing or empty.

    Raises Undecided if RE2 cannot run a pattern of `layers_pattern`.
    """
    wanted = config.get("layers_to_transform")
    if wanted is None or wanted == []:
        return True
    patterns = config.get("layers_pattern") or [r"[^.]+"]
    names = [patterns] if isinstance(patterns, str) else patterns
    layer = layer_of(module, names)
    return layer == wanted if isinstance(wanted, int) else layer in wanted


def layer_of(module: str, patterns: Iterable[str]) -> int | None:
    """Return the number in the module's name after a part that one of the patterns matches; None without one.

    It is 3 for `model.layers.3.mlp` and the pattern `layers`. Of several such numbers the last counts;
    a number at the end of the name is ignored. Raises Undecided if RE2 cannot run a pattern.
    """
    parts = module.split(".")
    for place in range(len(parts) - 2, 0, -1):
        before = ".".join(parts[:place])
        if parts[place].isdecimal() and any(whole_match(rf".*\.{pattern}", f".{before}") for pattern in patterns):
            return int(parts[place])
    return None
