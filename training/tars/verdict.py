"""Verdict on a plan's quality, in words that claim no more than docs/benchmarks.md measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.tars import allocation
from training.tars.presets import PRESETS, Settings, is_attention

FEWEST_SEQUENCES = 8
STABLE = 0.7
# A plan that moves a smaller share of its parameters away from a uniform rank counts as uniform.
SAME = 0.05
EVERYWHERE = {"all": "everywhere", "mlp": "in every MLP module"}
TEXTS = {
    "follow_plan": "Both halves of the sample rank the modules alike (stability {stability:.2f}): the plan is no "
    "accident of the sample. {measured}",
    "uniform_as_good": "The plan hardly differs from the same rank {everywhere}: take that.",
    "sample_too_small": "The sample of {sequences} sequences is too small (stability {stability:.2f}): add samples, or "
    "take the same rank {everywhere}.",
}
NOT_MEASURED = "Whether it beats uniform ranks only a run of each can tell."
# Results of the unchanged presets; plans with an overridden part were not measured.
MEASURED = {
    "default": "Where it was measured, this preset did as well as the same rank in every MLP module with the same "
    "start values, not better: expect its gain from the MLP and the start values, not from the ranks by layer.",
    "seed": "Where it was measured, this preset did worse than the same rank in every MLP module: prefer the default "
    "preset.",
}


def of(
    modules: Sequence[Mapping[str, Any]], stability: float | None, sequences: int, settings: Settings
) -> tuple[str, str]:
    """Return the verdict and a text that explains it. `modules` are {name, shape, divergence, rank}.

    The verdict is sample_too_small, uniform_as_good or follow_plan. A stability of None counts as stable.
    """
    if stability is not None and (sequences < FEWEST_SEQUENCES or stability < STABLE):
        verdict = "sample_too_small"
    else:
        verdict = "uniform_as_good" if moved_share(modules, settings) < SAME else "follow_plan"
    text = TEXTS[verdict].format(
        stability=stability or 0.0,
        sequences=sequences,
        everywhere=EVERYWHERE[settings.kinds],
        measured=measured(modules, settings),
    )
    return verdict, text


def measured(modules: Sequence[Mapping[str, Any]], settings: Settings) -> str:
    """Return a sentence on the measured results of the preset with these settings, or one that says there are none."""
    without_reference = settings.divergence != "none" and all(module["divergence"] is None for module in modules)
    known = {} if without_reference else MEASURED
    return next((text for name, text in known.items() if PRESETS[name] == settings), NOT_MEASURED)


def moved_share(modules: Sequence[Mapping[str, Any]], settings: Settings) -> float:
    """Return the share (0 to 1) of the planned parameters that the plan places elsewhere than a uniform rank would.

    Modules that the `kinds` leave out (attention) do not count: that is the preset's choice, not a result.
    """
    planned = [module for module in modules if settings.kinds == "all" or not is_attention(module["name"])]
    costs = [allocation.cost(module["shape"]) for module in planned]
    ranks = [module["rank"] for module in planned]
    parameters = sum(price * rank for price, rank in zip(costs, ranks, strict=True))
    if not parameters:
        return 0.0
    mean = parameters / sum(costs)
    moved = sum(price * abs(rank - mean) for price, rank in zip(costs, ranks, strict=True))
    return float(moved / (2 * parameters))
