"""Validation of the settings that override a rank analysis' preset, before it is queued. Pure, no torch."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, fields
from typing import Any

from adapterhub.core.errors import Invalid
from training.tars.presets import SCHEDULERS, BadSettings, Settings, settings_of

# Parts of a preset; rank_min is a field of the analysis beside rank_max and quantum.
PARTS = tuple(field.name for field in fields(Settings) if field.name != "rank_min")
PROBE = ("probe_steps", "probe_rates")
RACE = ("run_steps", "run_batch_size", "run_scheduler", "race_share", "race_rates")
NAMES = (*PARTS, *PROBE, *RACE, "target_modules")
MOST_STEPS, MOST_RATES = 1000, 8


def checked(preset: str, rank_min: int | None, settings: dict[str, Any], kinds: Collection[str]) -> dict[str, Any]:
    """Validate the given settings and return those that are not None.

    `rank_min` None is the preset's. `kinds` are the last names of the base model's linear modules, such as `q_proj`.
    Raises Invalid that names the field.
    """
    chosen = {name: value for name, value in settings.items() if value is not None}
    if unknown := sorted(set(chosen) - set(NAMES)):
        raise refused(unknown[0], f"is unknown; known are {', '.join(NAMES)}.")
    check_number(chosen, "power", 0.0, 10.0)
    check_number(chosen, "probe_steps", 1, MOST_STEPS)
    check_number(chosen, "run_steps", 1, 1_000_000)
    check_number(chosen, "run_batch_size", 1, 1024)
    check_number(chosen, "race_share", 0.0, 1.0)
    if chosen.get("run_scheduler", SCHEDULERS[0]) not in SCHEDULERS:
        raise refused("run_scheduler", f"must be one of {', '.join(SCHEDULERS)}.")
    for name in ("probe_rates", "race_rates"):
        check_rates(chosen, name)
    check_modules(chosen, kinds)
    if resolved(preset, rank_min, chosen).sensitivity != "probe" and (misplaced := sorted(set(chosen) & set(PROBE))):
        raise refused(misplaced[0], "is a setting of the probe: set sensitivity to probe, or leave it out.")
    if preset != "race" and (misplaced := sorted(set(chosen) & set(RACE))):
        raise refused(misplaced[0], "is a setting of the race: set preset to race, or leave it out.")
    return chosen


def resolved(preset: str, rank_min: int | None, chosen: dict[str, Any]) -> Settings:
    """Return the preset's settings with the chosen overrides; `rank_min` None is the preset's.

    Entries of `chosen` that are no setting of a preset are ignored. Raises Invalid for an unknown preset or value, or
    settings that conflict.
    """
    parts = {name: chosen[name] for name in PARTS if name in chosen}
    try:
        return settings_of(preset, rank_min=rank_min, **parts)
    except BadSettings as error:
        raise Invalid(str(error), field=field_path(error.field), code="bad_settings") from None


def effective(preset: str, rank_min: int, chosen: dict[str, Any]) -> dict[str, Any]:
    """Return every setting in effect, under the names that the plan uses. Raises Invalid as `resolved` does."""
    parts = asdict(resolved(preset, rank_min, chosen))
    return {**parts, **{name: value for name, value in chosen.items() if name not in PARTS}}


def arguments(chosen: dict[str, Any]) -> list[str]:
    """Return the chosen settings as command-line flags of `python -m training.tars`."""
    return [f"--{name.replace('_', '-')}={text_of(value)}" for name, value in sorted(chosen.items())]


def text_of(value: Any) -> str:
    """Return the value as text for the command line; a list is joined by commas."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def check_number(chosen: dict[str, Any], name: str, least: float, most: float) -> None:
    """Check that a setting, if chosen, is a number within the limits; a `least` of 0.0 excludes 0. Raises Invalid.

    It must be a whole number if `least` is an int.
    """
    value = chosen.get(name, most)
    numbers = int if isinstance(least, int) else (int, float)
    if isinstance(value, bool) or not isinstance(value, numbers):
        raise refused(name, f"must be a {'whole ' if numbers is int else ''}number, not {value!r}.")
    if not least <= value <= most or value == 0:
        raise refused(name, f"is {value}; it must be {f'at least {least}' if least else 'above 0'}, at most {most:g}.")


def check_rates(chosen: dict[str, Any], name: str) -> None:
    """Check that the setting `name`, if chosen, is a list of 1 to MOST_RATES floats between 0 and 1. Raises Invalid."""
    rates = chosen.get(name, [0.1])
    if not isinstance(rates, list) or not 1 <= len(rates) <= MOST_RATES or not all(map(is_rate, rates)):
        raise refused(name, f"must be a list of 1 to {MOST_RATES} learning rates between 0 and 1.")


def is_rate(value: Any) -> bool:
    """Return True for a float strictly between 0 and 1."""
    return isinstance(value, float) and math.isfinite(value) and 0 < value < 1


def check_modules(chosen: dict[str, Any], kinds: Collection[str]) -> None:
    """Check that `target_modules`, if chosen, is a list of some of `kinds`, the base model's module names as `q_proj`.

    Raises Invalid, also for an empty list.
    """
    names = chosen.get("target_modules", sorted(kinds))
    if not isinstance(names, list) or not names:
        raise refused("target_modules", "must be a list of module names; leave it out to take all.")
    if unknown := [name for name in names if name not in list(kinds)]:
        raise refused("target_modules", f"names {unknown[0]!r}; the base model has {', '.join(sorted(kinds))}.")


def refused(name: str, message: str) -> Invalid:
    """Return, without raising it, the error of an invalid setting; `message` continues the setting's name."""
    return Invalid(f"{name} {message}", field=field_path(name), code="bad_settings")


def field_path(name: str) -> str:
    """Return the path of the setting's field in a request: `settings.NAME`, but `preset` and `rank_min` alone."""
    return name if name in ("preset", "rank_min") else f"settings.{name}"
