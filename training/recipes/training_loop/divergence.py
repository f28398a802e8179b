"""Checks for a diverged training: its result must not become a version that looks like any other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from training.lm.error_reporting import Diverged
from training.lm.evaluation import HeldOutLoss
from training.recipes.scoring import paired_difference

FEWEST_ROWS = 5
# Nats by which two measurements of the same weights may differ.
ROUNDING = 1e-3
ADVICE = "Lower learning_rate or raise warmup_steps, and clone the run; its checkpoints are kept."


def require_finite(step: int, values: dict[str, float]) -> None:
    """Raise Diverged if `loss` or `grad_norm` in `values` is infinite or NaN."""
    for name in ("loss", "grad_norm"):
        if name in values and not math.isfinite(values[name]):
            raise Diverged(f"The training diverged at step {step}: {name} is {values[name]}. {ADVICE}")


def require_sound(
    before: HeldOutLoss | None, after: HeldOutLoss | None, weights: Sequence[float], guess: float | None
) -> None:
    """Raise Diverged if the held-out loss is not finite, no better than a guess, or worse than before beyond chance.

    Nothing is checked without `after`; without `before`, or if the loss has not risen, only that it is finite. `guess`
    is the loss in nats of a model for which each token is equally likely; None for preference methods. Chance is judged
    by the 95 % interval of the paired difference, weighted by `weights`, if there are at least FEWEST_ROWS rows.
    """
    if after is None:
        return
    if not math.isfinite(after.loss):
        raise Diverged(f"The training diverged: its held-out loss is {after.loss}. {ADVICE}")
    if before is None or after.loss <= before.loss + ROUNDING:
        return
    if guess is not None and after.loss >= guess:
        raise Diverged(
            f"The training diverged: its held-out loss {after.loss:.3f} is no better than a guess among "
            f"{math.exp(guess):,.0f} tokens, and was {before.loss:.3f} before. {ADVICE}"
        )
    if FEWEST_ROWS <= len(after.examples) == len(before.examples):
        change = paired_difference(after.examples, before.examples, weights)
        if change.low > 0:
            raise Diverged(
                f"The training made the model worse: the held-out loss rose from {before.loss:.3f} to {after.loss:.3f} "
                f"({change.low:.3f} to {change.high:.3f} more, 95 %). {ADVICE}"
            )
