"""Confidence sequences of a quantile (such as p50 or p95 of a latency), from a histogram of fixed size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from math import inf, log

import numpy as np
from numpy.typing import NDArray

from registry.experiments.confidence_sequences import Interval, concentration, log_evidence

# 1 ms to 1,000 s, each edge 5 % above the last: an interval's ends are at most 5 % wider than the values' own.
EDGES: NDArray[np.float64] = 1e-3 * 1.05 ** np.arange(284, dtype=np.float64)


def empty() -> NDArray[np.int64]:
    """Return an array of zeros, one for each bin of a histogram."""
    return np.zeros(len(EDGES) + 1, dtype=np.int64)


@dataclass(frozen=True)
class Histogram:
    """Counts of values in seconds between EDGES; the first bin counts all below, the last all from the last edge on.

    Add the histograms of several minutes with `+`. Raises ValueError for a wrong number of counts or a count below
    zero.
    """

    counts: NDArray[np.int64] = field(default_factory=empty)

    def __post_init__(self) -> None:
        if len(self.counts) != len(EDGES) + 1 or np.min(self.counts) < 0:
            raise ValueError(f"A histogram has {len(EDGES) + 1} counts of 0 or more.")

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Histogram:
        """Count durations in seconds into the bins between EDGES."""
        places = np.searchsorted(EDGES, np.fromiter(seconds, dtype=np.float64), side="right")
        return cls(np.bincount(places, minlength=len(EDGES) + 1))

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.counts + other.counts)

    @property
    def count(self) -> int:
        """Return the number of counted durations."""
        return int(self.counts.sum())

    def holding(self, rank: float) -> tuple[float, float]:
        """Return (low, high), the edges of the bin that holds the value of this rank.

        Rank 1 is the smallest value; `high` may be infinite.
        """
        place = int(np.searchsorted(np.cumsum(self.counts), rank))
        edges = (0.0, *EDGES, inf)
        return float(edges[place]), float(edges[place + 1])


def quantile_difference(control: Histogram, candidate: Histogram, level: float, alpha: float) -> Interval:
    """Return the interval of the candidate's quantile minus the control's, in seconds; `level` 0.95 is p95.

    Each arm's interval has half of alpha (union bound). The interval is infinite upwards until the candidate has enough
    values for this level, and downwards until the control has (at alpha 0.05: 32 for p50, 173 for p95, 558 for p99).
    Nonasymptotic. Raises ValueError for a level or alpha outside 0 and 1.
    """
    before, after = (quantile_interval(arm, level, alpha / 2) for arm in (control, candidate))
    return Interval(after.lower - before.upper, after.estimate - before.estimate, after.upper - before.lower)


def quantile_interval(values: Histogram, level: float, alpha: float) -> Interval:
    """Return the interval of one arm's quantile in seconds; from 0 to infinity, with a NaN estimate, without values.

    It covers the truth at all times with probability 1 - alpha. Howard and Ramdas, "Sequential estimation of quantiles
    with applications to A/B testing and best-arm identification" (2022), theorem 1 with the beta-binomial mixture: how
    many values lie below the true quantile is a count of known chance, so that the quantile lies between two ranks.
    Ends are rounded outwards to EDGES. Raises ValueError for a level or alpha outside 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}.")
    few, many = rank_limits(values.count, level, alpha)
    if not values.count:
        return Interval(0.0, float("nan"), inf)
    low, high = (values.holding(few)[0] if few > 0 else 0.0), (values.holding(many)[1] if many else inf)
    return Interval(low, middle(*values.holding(max(level * values.count, 1))), high)


@cache
def values_needed(level: float, alpha: float) -> int:
    """Return the number of values from which on the interval of `quantile_interval` has a finite upper end."""
    low, high = 0, 1
    while rank_limits(high, level, alpha)[1] is None:
        low, high = high, 2 * high
    while high - low > 1:
        tried = (low + high) // 2
        low, high = (tried, high) if rank_limits(tried, level, alpha)[1] is None else (low, tried)
    return high


def middle(low: float, high: float) -> float:
    """Return the middle of a range; its low end if the high one is infinite."""
    return low if high == inf else (low + high) / 2


def rank_limits(count: int, level: float, alpha: float) -> tuple[int, int | None]:
    """Return the ranks (low, high) between which the quantile of `count` values lies with probability 1 - alpha.

    This holds at all times. `low` is 0 if it may lie below every value, `high` None if it may lie above every value.
    """
    few = least_plausible(count, level, alpha)
    above = least_plausible(count, 1 - level, alpha)
    return few, count - above + 1 if above > 0 else None


def least_plausible(count: int, chance: float, alpha: float) -> int:
    """Return the least number of hits, from 0 to count * chance, that does not contradict the chance.

    A number of hits contradicts it if the evidence against it is 1 / alpha or more.
    """
    prior = concentration(alpha)
    low, high = -1, int(count * chance)
    while high - low > 1:
        tried = (low + high) // 2
        contradicted = log_evidence(tried, count, chance, prior) >= -log(alpha)
        low, high = (tried, high) if contradicted else (low, tried)
    return high
