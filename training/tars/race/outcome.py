"""The result of a race: the best rate by length, and the interval between two candidates. It imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000


@dataclass(frozen=True)
class Difference:
    """Loss of one candidate over that of another, minus 1, in percent: mean and 95 % bounds, paired by row."""

    mean: float
    low: float
    high: float

    @property
    def includes_zero(self) -> bool:
        """Return True if the rows do not tell the two apart."""
        return self.low <= 0 <= self.high


def difference(ours: NDArray[np.float64], peer: NDArray[np.float64], weights: NDArray[np.float64]) -> Difference:
    """Return how much `ours` differs from `peer`, from losses by row; rows are drawn anew for the bounds, both alike.

    `weights` are the rows' counted tokens.
    """
    random = np.random.default_rng(0)
    picks = random.integers(0, len(weights), (DRAWS, len(weights)))
    drawn = 100 * ((weights * ours)[picks].sum(1) / (weights * peer)[picks].sum(1) - 1)
    low, high = (round(float(bound), 4) for bound in np.percentile(drawn, [2.5, 97.5]))
    return Difference(round(100 * float((weights @ ours) / (weights @ peer) - 1), 4), low, high)


def best_rate(losses: Mapping[float, float]) -> float | None:
    """Return the rate of the least loss; `losses` are by rate, and those that are not finite are left out.

    If the best tried rate lies between two others, it is the minimum of a parabola through the three, on a scale of
    logarithms. None if no loss is finite.
    """
    finite = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
    if not finite:
        return None
    rates = sorted(finite)
    place = rates.index(min(rates, key=lambda rate: finite[rate]))
    if not 0 < place < len(rates) - 1:
        return rates[place]
    around = [math.log(rate) for rate in rates[place - 1 : place + 2]]
    square, line, _ = np.polyfit(around, [finite[rate] for rate in rates[place - 1 : place + 2]], 2)
    peak = -line / (2 * square) if square > 0 else around[1]
    return float(math.exp(min(max(peak, around[0]), around[2])))


def advised(best_rates: Sequence[float]) -> float:
    """Return the rate for the run: the geometric mean of the best ones at the lengths that were raced.

    Moving it along the lengths to that of the run was measured and does harm: between two short lengths the best rate
    moves by chance more than by length (docs/benchmarks.md).
    """
    return math.exp(sum(map(math.log, best_rates)) / len(best_rates))
