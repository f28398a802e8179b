"""The charts of a run's page: a curve for each quantity that it logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapterhub import charts

FRAME = charts.Frame(640, 220, 44)
# What a run logs, in the order of the page, and how people read it.
NAMES = {
    "loss": "Training loss",
    "held_out_loss": "Held-out loss",
    "reward_margin": "Reward margin",
    "held_out_reward_margin": "Held-out reward margin",
    "reward_accuracy": "Reward accuracy",
    "held_out_reward_accuracy": "Held-out reward accuracy",
    "reward_chosen": "Reward of chosen answers",
    "reward_rejected": "Reward of rejected answers",
    "kl": "Divergence from the base (KL)",
    "nll_loss": "Loss of the preferred answers",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_second": "Tokens a second",
    "memory_bytes": "Peak memory in GB",
}
Rows = Sequence[tuple[int, dict[str, Any]]]


def curves(rows: Rows) -> list[dict[str, Any]]:
    """Return a curve for each quantity that was logged at two steps or more; the loss comes first."""
    drawn_curves = [curve(rows, name) for name in NAMES]
    return [each for each in drawn_curves if each]


def losses(rows: Rows, best_step: int | None) -> dict[str, Any] | None:
    """Return training and held-out loss in one chart; None unless both were logged at two steps or more.

    The checkpoint that became the version is marked, else the lowest held-out loss so far; `best` is {step, value,
    is_version}. `best_step` is the step of that checkpoint, None if there is none.
    """
    series = [points_of(rows, "loss"), points_of(rows, "held_out_loss")]
    if min(map(len, series)) < 2:
        return None
    held_out = dict(series[1])
    step = best_step if best_step in held_out else min(held_out, key=lambda at: held_out[at])
    best = {"step": step, "value": held_out[step], "is_version": step == best_step}
    return {"best": best, **charts.overlay(FRAME, series, (step, held_out[step]))}


def points_of(rows: Rows, name: str) -> list[tuple[int, float]]:
    """Return the (step, value) pairs at which the quantity was logged; memory is in GB."""
    scale = 1e-9 if name == "memory_bytes" else 1
    return [(step, values[name] * scale) for step, values in rows if values.get(name) is not None]


def curve(rows: Rows, name: str) -> dict[str, Any] | None:
    """Return one quantity's curve with its title; None with fewer than two points."""
    known = points_of(rows, name)
    if len(known) < 2:
        return None
    return {"name": name, "title": NAMES[name], **charts.curve(FRAME, known)}
