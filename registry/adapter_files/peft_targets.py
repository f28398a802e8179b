"""The modules that a configuration adapts, as PEFT reads it. Patterns are run by RE2, never by Python's `re`. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from adapterhub.core.regex_check import matcher

ALL_LINEAR = "all-linear"
Config = dict[str, Any]


class Undecided(Exception):
    """Raised when RE2 cannot run a pattern of the configuration; the message says why."""


def adapted_modules(config: Config, modules: Iterable[str]) -> set[str] | None:
    """Return those of the base model's linear `modules` that PEFT adapts; None without target_modules.

    Raises Undecided for a pattern that RE2 cannot run.
    """
    targets = config.get("target_modules")
    if targets is None:
        return None
    return {module for module in modules if is_adapted(config, targets, module)}


def is_adapted(config: Config, targets: Any, module: str) -> bool:
    """Return True if PEFT adapts the module: `targets` name it, its layer is chosen, and it is not excluded.

    Raises Undecided if RE2 cannot run a pattern.
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
    """Return True if the pattern matches the whole text. Raises Undecided if RE2 cannot run the pattern."""
    try:
        return matcher(f"^(?:{pattern})$")(text)
    except ValueError as error:
        raise Undecided(str(error)) from None


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
