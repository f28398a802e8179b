"""Confidence sequences: intervals that stay valid however often they are looked at, and verdicts on them.

The summed values must be independent. Requests of one user are correlated: use one value per user instead. Every
number may be a numpy array with one entry for each look or simulated run; results have the same shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import e, inf
from typing import cast

import numpy as np
from numpy.typing import NDArray

Number = float | NDArray[np.float64]
Bounds = tuple[float, float]
UNIT: Bounds = (0.0, 1.0)
TUNED_FOR = 1000  # samples an arm at which the intervals are narrowest; valid at every other
LEAST = 30  # samples an arm before a metric without bounds has an interval: its spread is not known earlier


class Verdict(StrEnum):
    """The result of comparing an interval with a margin; INCONCLUSIVE means that more data is needed."""

    GOOD = "good"
    BAD = "bad"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Sample:
    """One arm's values so far: their count, sum and sum of squares. Add the samples of several minutes with `+`."""

    count: Number = 0
    total: Number = 0.0
    squares: Number = 0.0

    @classmethod
    def of_failures(cls, count: Number, failures: Number) -> Sample:
        """Make a sample of `failures` ones and otherwise zeros.

        Raises ValueError for failures below 0 or above the count.
        """
        if np.any(np.less(failures, 0)) or np.any(np.greater(failures, count)):
            raise ValueError(f"failures must be between 0 and the count {count}, not {failures}.")
        return cls(count, failures, failures)

    def __add__(self, other: Sample) -> Sample:
        return Sample(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def mean(self) -> Number:
        """Return the mean; NaN for a sample without values."""
        return self.total / np.where(np.greater(self.count, 0), self.count, np.nan)

    def variance(self, bounds: Bounds | None) -> Number:
        """Return the plug-in variance, never below zero; `bounds` are the least and greatest possible value.

        With bounds, one imagined value at each bound keeps it above zero (Agresti and Caffo 2000 do so for
        proportions), so that "no failure yet" is not taken for "no failure ever".
        """
        edges = bounds or ()
        count = np.maximum(np.add(self.count, len(edges)), 1)
        squares = self.squares + sum(edge * edge for edge in edges)
        return np.maximum(squares / count - ((self.total + sum(edges)) / count) ** 2, 0.0)


@dataclass(frozen=True)
class Interval:
    """Interval of candidate minus control, in the metric's unit; `estimate` is NaN until both arms have a value."""

    lower: Number
    estimate: Number
    upper: Number


def proportion_difference(control: Sample, candidate: Sample, alpha: float) -> Interval:
    """Return the interval of candidate minus control for proportions, within -1 and 1 (0.05 is five points).

    Raises ValueError for an alpha outside 0 and 1.
    """
    return mean_difference(control, candidate, alpha, bounds=UNIT)


def mean_difference(control: Sample, candidate: Sample, alpha: float, bounds: Bounds | None = None) -> Interval:
    """Return the interval of candidate minus control for means.

    It covers the truth at all times with probability 1 - alpha. Asymptotic confidence sequence of Waudby-Smith, Arbour,
    Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences" (2021), theorem
    2.2: s/t * sqrt((t + r) log((t + r) / (r alpha^2))), with s^2 the sum of both variances and t = s^2 / (var_0/n_0 +
    var_1/n_1), which is n where both arms have n. `bounds` are the least and greatest possible value; without them the
    interval is infinite below LEAST samples. Raises ValueError for an alpha outside 0 and 1.
    """
    first, second = control.variance(bounds), candidate.variance(bounds)
    spread = first + second
    least = np.minimum(control.count, candidate.count) >= (1 if bounds else LEAST)
    enough = np.logical_and(least, spread > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = np.divide(first, control.count) + np.divide(second, candidate.count)
        samples = np.where(enough, spread / noise, 1.0)
    half = np.where(enough, np.sqrt(spread) / samples * boundary(samples, alpha), inf)
    return around(candidate.mean() - control.mean(), half, bounds[1] - bounds[0] if bounds else inf)


def around(estimate: Number, half: Number, most: float) -> Interval:
    """Return the interval `half` to both sides of the estimate (of 0 if it is NaN), clipped to -most and most."""
    known = np.nan_to_num(estimate)
    return Interval(np.maximum(known - half, -most), estimate, np.minimum(known + half, most))


def boundary(samples: Number, alpha: float) -> Number:
    """Return the bound on a standardised sum of `samples` values that holds at all times with probability 1 - alpha.

    It is the two-sided normal mixture for a Brownian motion (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon,
    "Time-uniform, nonparametric, nonasymptotic confidence sequences", 2021, equation 14). Raises ValueError for an
    alpha outside 0 and 1.
    """
    prior = concentration(alpha)
    return np.sqrt((samples + prior) * np.log((samples + prior) / (prior * alpha**2)))


def concentration(alpha: float, tuned_for: float = TUNED_FOR) -> float:
    """Return the parameter, in samples, that makes the mixture boundary narrowest at `tuned_for` samples.

    Howard et al. 2021, proposition 3. Raises ValueError for an alpha outside 0 and 1.
    """
    # Every process of the product imports this module, few compute with it: the import costs a tenth of their start.
    from scipy.special import lambertw

    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, not {alpha}.")
    return tuned_for / float(-lambertw(-(alpha**2) / e, -1).real - 1)


def judged(interval: Interval, margin: float) -> Verdict:
    """Judge non-inferiority where more is worse: BAD if the whole interval exceeds the margin, GOOD if none of it does.

    Otherwise INCONCLUSIVE. The margin is in the interval's unit. For a metric where less is worse pass
    `mirrored(interval)`. Raises ValueError for a margin below zero.
    """
    if not margin >= 0:
        raise ValueError(f"The margin must be 0 or more, not {margin}.")
    if interval.lower > margin:
        return Verdict.BAD
    return Verdict.GOOD if interval.upper <= margin else Verdict.INCONCLUSIVE


def mirrored(interval: Interval) -> Interval:
    """Return the interval with its sign reversed: control minus candidate."""
    return Interval(-interval.upper, -interval.estimate, -interval.lower)


def control_moved(before: Sample, during: Sample, margin: float, alpha: float, bounds: Bounds | None = None) -> bool:
    """Return True if the control itself got worse by more than the margin since before the rollout.

    That indicates an outage, not a regression of the candidate. `before` is fixed when the rollout starts. More is
    worse.
    """
    return judged(mean_difference(before, during, alpha, bounds), margin) is Verdict.BAD


def log_evidence(hits: Number, count: Number, chance: float, prior: float) -> Number:
    """Return the log Bayes factor against the hypothesis "each of `count` is a hit with probability `chance`".

    The alternative is a Beta distribution around that chance with the weight of `prior` samples. The exponential is a
    martingale if the hypothesis is true, so it ever reaches 1/alpha with probability at most alpha (Ville 1939).
    """
    from scipy.special import betaln, xlog1py, xlogy

    yes, no = prior * chance, prior * (1 - chance)
    likely = betaln(yes + hits, no + count - hits) - betaln(yes, no)
    evidence = likely - xlogy(hits, chance) - xlog1py(np.subtract(count, hits), -chance)
    return cast(Number, evidence)
