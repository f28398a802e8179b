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


def curve(rows: Rows, name: str) -> dict[str, Any] | None:
    """Return one quantity's curve; None with fewer than two points."""
    scale = 1e-9 if name == "memory_bytes" else 1
    known = [(step, values[name] * scale) for step, values in rows if values.get(name) is not None]
    if len(known) < 2:
        return None
    return {"name": name, "title": NAMES[name], **charts.curve(FRAME, known)}
