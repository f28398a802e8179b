"""Configuration of a rank analysis: its budget, bounds, and settings that override the preset. It imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from training.tars.presets import PROBE_RATES, SCHEDULERS, BadSettings, Settings, settings_of


@dataclass(frozen=True)
class AnalysisConfig:
    """Configuration of a rank analysis, with lengths in tokens.

    `budget_kind` is uniform_rank, parameters or bytes; `scale` is alpha / r of every module. Settings that are None are
    taken from the preset. Ranks are multiples of `quantum`; `samples` rows are read of the task, and as many of the
    reference. `target_modules` are last parts of module names; None takes every linear module. The probe tries the
    `probe_rates` in turn, with `probe_steps` steps each. A race may read `race_share` of the tokens of the run to come,
    of `run_steps` steps of `run_batch_size` sequences; `race_rates` None are those that suit the model.
    """

    budget_kind: str = "uniform_rank"
    budget_value: int = 16
    preset: str = "default"
    sensitivity: str | None = None
    divergence: str | None = None
    direction: str | None = None
    objective: str | None = None
    init: str | None = None
    kinds: str | None = None
    power: float | None = None
    rank_min: int | None = None
    rank_max: int = 32
    quantum: int = 4
    scale: float = 2.0
    samples: int = 128
    max_length: int = 256
    batch_size: int = 4
    probe_steps: int = 10
    probe_rates: tuple[float, ...] = PROBE_RATES
    target_modules: tuple[str, ...] | None = None
    run_steps: int = 600
    run_batch_size: int = 8
    run_scheduler: str = SCHEDULERS[0]
    race_share: float = 0.15
    race_rates: tuple[float, ...] | None = None
    seed: int = 0

    def settings(self) -> Settings:
        """Return the preset's settings with the overrides.

        Raises BadSettings, also for a `scale` not above 0, a `race_share` not above 0 or above 1, and empty
        `probe_rates` or `race_rates`.
        """
        if not self.scale > 0:
            raise BadSettings("scale", f"scale is {self.scale}; alpha / r must be above 0.")
        if not self.probe_rates:
            raise BadSettings("probe_rates", "probe_rates is empty: name at least one learning rate.")
        if not 0 < self.race_share <= 1:
            raise BadSettings("race_share", f"race_share is {self.race_share}; it must be above 0 and at most 1.")
        if self.race_rates is not None and not self.race_rates:
            raise BadSettings("race_rates", "race_rates is empty: name at least one learning rate.")
        names = ("sensitivity", "divergence", "direction", "objective", "init", "kinds", "power", "rank_min")
        return settings_of(self.preset, **{name: getattr(self, name) for name in names})
