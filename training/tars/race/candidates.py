"""Candidates of a race: kinds of module, share of the budget, start values and learning rate. It imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.tars.allocation import Bounds, BudgetTooSmall, Problem, allocate_uniform, cost

# Rates around the one that suits a model of this width, which falls as the width grows.
CENTRE, CENTRE_WIDTH = 2e-3, 576
FACTORS = (0.5, 1.0, 2.0, 4.0)
# A processor without a GPU trains fewer: it gains nothing from training them side by side.
CPU_FACTORS, CPU_RECIPES = (0.5, 1.0, 2.0), 2


@dataclass(frozen=True)
class Recipe:
    """Kinds of module with one rank each, for a `share` of the budget, with or without start values for A.

    `kinds` is all, mlp or attention; `share` is above 0 and at most 1.
    """

    kinds: str
    start_values: bool = False
    share: float = 1.0


# In the order in which a race takes them, as far as its tokens go. The first was the best one of its size on most
# domains of docs/benchmarks.md.
RECIPES = (
    Recipe("mlp", start_values=True),
    Recipe("all"),
    Recipe("mlp"),
    Recipe("all", start_values=True),
    Recipe("mlp", start_values=True, share=0.5),
    Recipe("attention"),
)


@dataclass(frozen=True)
class Candidate:
    """A recipe at a learning rate, with its ranks by full module name and its number of parameters."""

    recipe: Recipe
    rate: float
    ranks: Mapping[str, int]
    parameters: int

    def described(self) -> dict[str, Any]:
        """Return the candidate as a JSON object; `rank` is its highest."""
        return {
            "kinds": self.recipe.kinds,
            "start_values": self.recipe.start_values,
            "share": self.recipe.share,
            "rank": max(self.ranks.values()),
            "rate": self.rate,
            "parameters": self.parameters,
        }


def rates_of(width: int, factors: Sequence[float] = FACTORS) -> tuple[float, ...]:
    """Return the learning rates to try for a model of this hidden width, ascending.

    They are the `factors` times the rate that suits the width.
    """
    centre = CENTRE * min(1.0, CENTRE_WIDTH / width)
    return tuple(float(f"{centre * factor:.2g}") for factor in factors)


def field(
    shapes: Mapping[str, Sequence[int]],
    budget: int,
    bounds: Bounds,
    rates: Sequence[float],
    recipes: Sequence[Recipe] = RECIPES,
) -> list[Candidate]:
    """Return the candidates of these recipes and rates within a budget of parameters, recipe by recipe.

    A recipe for which no rank within the bounds meets its share of the budget, or that has the same ranks and start
    values as an earlier one, is left out. Raises BudgetTooSmall if none remains.
    """
    plans: dict[Recipe, dict[str, int]] = {}
    for recipe in recipes:
        ranks = uniform(shapes, int(budget * recipe.share), bounds, recipe.kinds)
        if ranks and (ranks, recipe.start_values) not in [(known, r.start_values) for r, known in plans.items()]:
            plans[recipe] = ranks
    if not plans:
        raise BudgetTooSmall(budget, bounds.quantum * sum(cost(shape) for shape in shapes.values()))
    return [
        Candidate(recipe, rate, ranks, sum(cost(shapes[name]) * rank for name, rank in ranks.items()))
        for recipe, ranks in plans.items()
        for rate in rates
    ]


def uniform(shapes: Mapping[str, Sequence[int]], budget: int, bounds: Bounds, kinds: str) -> dict[str, int]:
    """Return one rank in every module of the kinds, as high as the budget and the bounds allow; {} if there is none."""
    names = list(shapes)
    least = Bounds(0, bounds.rank_max, bounds.quantum)
    problem = Problem.unbounded(names, [shapes[name] for name in names], budget, least, kinds)
    try:
        quanta = allocate_uniform(problem)
    except BudgetTooSmall:
        return {}
    return {name: steps * bounds.quantum for name, steps in zip(names, quanta, strict=True) if steps}
