"""Exact optimum of a rank budget when further ranks of a module are worth less and less. It needs numpy alone.

    maximise  sum_m V_m(n_m)   subject to   sum_m n_m * w_m <= budget,   low_m <= n_m <= high_m

n is in whole quanta, w is the parameters of one quantum, V is any function. It is solved by dynamic programming over
the budget in units of the weights' greatest common divisor (Bellman's knapsack recursion).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Cells of the table of choices, two bytes each. Shapes with a tiny common divisor are rounded up to larger units.
MOST_CELLS = 20_000_000

Values = Sequence[NDArray[np.float64]]  # by module: worth of 0, 1, ... high quanta
Ranges = Sequence[tuple[int, int]]  # by module: least and most quanta


def optimum(values: Values, weights: Sequence[int], budget: int, ranges: Ranges) -> list[int]:
    """Return each module's quanta that maximise the sum of `values` within the budget.

    `values` has for each module the worth of 0, 1, ... quanta, `weights` the parameters of one quantum, `ranges` its
    least and most quanta. Exact while the table has at most MOST_CELLS cells, else to within the table's unit; greedy
    if that unit is too coarse for the minimum.
    """
    unit = unit_of(weights, budget, len(values))
    costs = [-(-weight // unit) for weight in weights]
    room = budget // unit - sum(low * price for (low, _), price in zip(ranges, costs, strict=True))
    if room < 0:
        return greedy(values, weights, budget, ranges)
    best, choices = np.zeros(room + 1), []
    for value, price, (low, high) in zip(values, costs, ranges, strict=True):
        best, choice = one_more(best, value[low : high + 1], price)
        choices.append(choice)
    return [low + step for (low, _), step in zip(ranges, traced(choices, costs, room), strict=True)]


def unit_of(weights: Sequence[int], budget: int, modules: int) -> int:
    """Return the number of parameters that one column of the table stands for.

    It is the greatest common divisor of the weights, or a multiple of it if the table would have over MOST_CELLS
    cells.
    """
    unit = math.gcd(*weights)
    return unit * max(1, -(-(budget // unit) * modules // MOST_CELLS))


def one_more(
    best: NDArray[np.float64], value: NDArray[np.float64], price: int
) -> tuple[NDArray[np.float64], NDArray[np.int16]]:
    """Return the best worth for every capacity with one more module, and the quanta that the module takes for each.

    `best` is the worth without it, by capacity in units of the table; `value` is the module's worth of its least quanta
    and of 1, 2, ... more, and `price` the units that each of these costs.
    """
    values, choice = best + value[0], np.zeros(len(best), dtype=np.int16)
    for step in range(1, len(value)):
        if step * price >= len(best):
            break
        offered = best[: len(best) - step * price] + value[step]
        better = offered > values[step * price :]
        values[step * price :][better] = offered[better]
        choice[step * price :][better] = step
    return values, choice


def traced(choices: Sequence[NDArray[np.int16]], costs: Sequence[int], room: int) -> list[int]:
    """Return each module's quanta beyond its least, by following the table's choices backwards from `room`."""
    steps = []
    for choice, price in zip(reversed(choices), reversed(costs), strict=True):
        steps.append(int(choice[room]))
        room -= steps[-1] * price
    return steps[::-1]


def greedy(values: Values, weights: Sequence[int], budget: int, ranges: Ranges) -> list[int]:
    """Return the quanta by always adding the one that gains most per parameter and fits.

    The arguments are those of `optimum`. For concave values the result is within one quantum of the optimum.
    """
    steps = [low for low, _ in ranges]
    free = budget - sum(low * weight for low, weight in zip(steps, weights, strict=True))
    gains = sorted(
        (-(value[step + 1] - value[step]) / weight, step, module)
        for module, (value, weight, (low, high)) in enumerate(zip(values, weights, ranges, strict=True))
        for step in range(low, high)
    )
    for loss, step, module in gains:
        if loss < 0 and steps[module] == step and weights[module] <= free:
            steps[module] += 1
            free -= weights[module]
    return steps


def total_value(values: Values, steps: Sequence[int]) -> float:
    """Return the sum of the modules' values at these quanta."""
    return float(sum(value[step] for value, step in zip(values, steps, strict=True)))
