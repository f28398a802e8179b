"""Presets of a rank analysis: the signals measured and the objective; each part can be overridden.

It imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

CHOICES = {
    "sensitivity": ("probe", "spectrum", "grad_norm", "output_shift"),
    "divergence": ("none", "softmax_mean", "gaussian_diag"),
    "direction": ("base_target", "target_base"),
    "objective": ("concave", "linear"),
    "init": ("none", "gradient"),
    "kinds": ("all", "mlp", "attention"),
}
PROBE_RATES = (2e-3, 4e-3, 8e-3)
# Schedules of a run that a race takes; the first is the recipes' default.
SCHEDULERS = ("linear", "cosine", "constant")
# Sensitivities that know the worth of every further rank, not only of a module.
WITH_SPECTRUM = ("probe", "spectrum")
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "query_key_value"}


class BadSettings(ValueError):
    """Raised if a setting is unknown or conflicts with another; `field` is the one to change."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Settings:
    """Settings of a rank analysis; their words are those of CHOICES.

    A preset may also have the sensitivity none or the objective uniform. A module's worth is the sum of sigma_i **
    `power` over its ranks. Only modules of the `kinds` ("all", "mlp" or "attention") may have ranks above `rank_min`.
    """

    sensitivity: str
    divergence: str
    objective: str
    direction: str = "base_target"
    init: str = "none"
    kinds: str = "all"
    power: float = 1.0
    rank_min: int = 4

    @property
    def needs_reference(self) -> bool:
        """Return True if the analysis compares the task with other text."""
        return self.divergence != "none" or self.sensitivity == "output_shift"


PRESETS = {
    "default": Settings("probe", "none", "concave", init="gradient", kinds="mlp", rank_min=0),
    "seed": Settings("grad_norm", "softmax_mean", "linear"),
    "uniform": Settings("none", "none", "uniform"),
    # Kinds and start values are those of the candidate that wins; the spectrum stays as evidence.
    "race": Settings("spectrum", "none", "uniform", init="gradient", rank_min=0),
}


def settings_of(preset: str, **chosen: Any) -> Settings:
    """Return the preset's settings with the overrides in `chosen` that are not None.

    Raises BadSettings for an unknown preset, setting or value, or for settings that conflict.
    """
    if preset not in PRESETS:
        raise BadSettings("preset", f"preset is {preset!r}; it must be one of {', '.join(PRESETS)}.")
    overrides = {name: value for name, value in chosen.items() if value is not None}
    known = {field.name for field in fields(Settings)}
    for name, value in overrides.items():
        if name not in known:
            raise BadSettings(name, f"{name} is not a setting of an analysis.")
        if name in CHOICES and value not in CHOICES[name]:
            raise BadSettings(name, f"{name} is {value!r}; it must be one of {', '.join(CHOICES[name])}.")
    if preset == "uniform" and set(overrides) - {"rank_min"}:
        raise BadSettings(min(overrides), "The uniform preset measures nothing: leave the other settings out.")
    if preset == "race" and (
        decided := {name for name, value in overrides.items() if (name, value) != ("rank_min", 0)}
    ):
        raise BadSettings(min(decided), "The race decides this by what its candidates reach: leave it out.")
    return consistent(replace(PRESETS[preset], **overrides))


def consistent(settings: Settings) -> Settings:
    """Return the settings unchanged.

    Raises BadSettings for a power that is not above 0, or a concave objective with a sensitivity that has no spectrum.
    """
    if not (math.isfinite(settings.power) and settings.power > 0):
        raise BadSettings("power", f"power is {settings.power}; it must be a number above 0.")
    if settings.objective == "concave" and settings.sensitivity not in WITH_SPECTRUM:
        raise BadSettings(
            "objective",
            f"A concave objective needs a spectrum: set sensitivity to {' or '.join(WITH_SPECTRUM)}, "
            "or objective to linear.",
        )
    return settings


def is_open(name: str, kinds: str) -> bool:
    """Return True if a module of this name is of the `kinds`, so that it may have ranks above `rank_min`."""
    return kinds == "all" or is_attention(name) == (kinds == "attention")


def is_attention(name: str) -> bool:
    """Return True if some part of a module's dotted name is that of attention or of an attention projection."""
    return any("attn" in part or "attention" in part or part in ATTENTION for part in name.split("."))
