"""What a plan is worth, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.tars import allocation

FEWEST_SEQUENCES = 8
STABLE = 0.7
# The share of its parameters that a plan moves away from the same rank everywhere, below which it is that.
SAME = 0.05
TEXTS = {
    "follow_plan": "Both halves of the sample rank the modules alike (stability {stability:.2f}): the plan is no "
    "accident of the sample. Whether it beats uniform ranks only a run of each can tell.",
    "uniform_as_good": "The plan hardly differs from the same rank everywhere: take uniform ranks.",
    "sample_too_small": "The sample of {sequences} sequences is too small (stability {stability:.2f}): add samples, or "
    "take uniform ranks.",
}


def of(modules: Sequence[Mapping[str, Any]], stability: float | None, sequences: int) -> tuple[str, str]:
    """(verdict, one or two sentences). `modules` are {shape, rank}."""
    if stability is not None and (sequences < FEWEST_SEQUENCES or stability < STABLE):
        found = "sample_too_small"
    else:
        found = "uniform_as_good" if moved_share(modules) < SAME else "follow_plan"
    return found, TEXTS[found].format(stability=stability or 0.0, sequences=sequences)


def moved_share(modules: Sequence[Mapping[str, Any]]) -> float:
    """Share of the parameters that stand elsewhere than the same rank everywhere would put them."""
    costs = [allocation.cost(module["shape"]) for module in modules]
    ranks = [module["rank"] for module in modules]
    spent = sum(price * rank for price, rank in zip(costs, ranks, strict=True))
    mean = spent / sum(costs)
    moved = sum(price * abs(rank - mean) for price, rank in zip(costs, ranks, strict=True))
    return float(moved / (2 * spent))
