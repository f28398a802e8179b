"""The modules that a configuration adapts, as PEFT reads it, without running a pattern by Python's engine. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from adapterhub.core.regex_check import matcher

ALL_LINEAR = "all-linear"
Config = dict[str, Any]


class Undecided(Exception):
    """Raised when a pattern cannot be evaluated here; the message says why."""


def adapted_modules(config: Config, modules: Iterable[str]) -> set[str] | None:
    """Return those of the base model's linear `modules` that PEFT adapts; None if the configuration names none.

    Raises Undecided for a pattern that only Python's engine runs.
    """
    targets = config.get("target_modules")
    if targets is None:
        return None
    return {module for module in modules if is_adapted(config, targets, module)}


def is_adapted(config: Config, targets: Any, module: str) -> bool:
    """Return True if PEFT puts a LoRA on the module. Raises Undecided."""
    excluded = config.get("exclude_modules") or ()
    if names_module(excluded, module):
        return False
    if isinstance(targets, str):
        return targets.lower() == ALL_LINEAR or whole_match(targets, module)
    if module in targets:
        return True
    return names_module(targets, module) and is_in_layers(config, module)


def names_module(targets: Any, module: str) -> bool:
    """Return True if a list names the module or its last parts, or if a pattern matches the whole name.

    Raises Undecided.
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
    """Return True if the module's layer is one of `layers_to_transform`, or if that is not given. Raises Undecided."""
    wanted = config.get("layers_to_transform")
    if wanted is None or wanted == []:
        return True
    patterns = config.get("layers_pattern") or [r"[^.]+"]
    names = [patterns] if isinstance(patterns, str) else patterns
    layer = layer_of(module, names)
    return layer == wanted if isinstance(wanted, int) else layer in wanted


def layer_of(module: str, patterns: Iterable[str]) -> int | None:
    """Return the layer's number that stands after a part matched by a pattern.

    3 in `model.layers.3.mlp`; None without one.

    Of several such numbers the last counts. Raises Undecided.
    """
    parts = module.split(".")
    for place in range(len(parts) - 2, 0, -1):
        before = ".".join(parts[:place])
        if parts[place].isdecimal() and any(whole_match(rf".*\.{pattern}", f".{before}") for pattern in patterns):
            return int(parts[place])
    return None
