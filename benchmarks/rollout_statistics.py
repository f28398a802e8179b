"""A rollout watched at every sample: how often is a good candidate blamed, and how soon is a bad one found?

    python benchmarks/rollout_statistics.py --out benchmarks/results/rollout_statistics.json

Simulated. `ours` is the always-valid interval that rollouts use, `peer` the fixed-sample test (z at alpha, two-sided)
looked at just as often; both in percent of the runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from report import Row, arguments, publish
from scipy.stats import norm

from registry.experiments.confidence_sequences import UNIT, Bounds, Interval, Sample, mean_difference

ALPHA = 0.05
MARGIN = 0.01
LOOKS = (100, 250, 500, 750, 1000, 1500, 5000)
BLOCK = 50  # runs simulated at once, to keep memory small

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


@dataclass(frozen=True)
class Case:
    """Draws of both arms. `margin` is None where a false alarm is any interval without the zero."""

    what: str
    control: Draw
    candidate: Draw
    bounds: Bounds | None = UNIT
    margin: float | None = None


def failing(rate: float) -> Draw:
    return lambda rng, samples: (rng.random((BLOCK, samples)) < rate).astype(float)


def skewed(rng: np.random.Generator, samples: int) -> NDArray[np.float64]:
    return rng.lognormal(0, 1, (BLOCK, samples))


CASES = (
    *(Case(f"A/A, {rate:.1%} errors", failing(rate), failing(rate)) for rate in (0.001, 0.01, 0.05, 0.5)),
    Case("A/A, log-normal latency", skewed, skewed, bounds=None),
    Case("5 % against 10 % errors", failing(0.05), failing(0.10), margin=MARGIN),
    Case("5 % against 7 % errors", failing(0.05), failing(0.07), margin=MARGIN),
)


def watched(values: NDArray[np.float64]) -> Sample:
    counts = np.arange(1, values.shape[1] + 1, dtype=float)
    return Sample(counts, np.cumsum(values, axis=1), np.cumsum(values**2, axis=1))


def fixed_sample(control: Sample, candidate: Sample, bounds: Bounds | None) -> Interval:
    """The textbook interval, from the 30th sample on."""
    estimate = candidate.mean() - control.mean()
    noise = (control.variance(bounds) + candidate.variance(bounds)) / control.count
    half = np.where(control.count < 30, np.inf, norm.ppf(1 - ALPHA / 2) * np.sqrt(noise))
    return Interval(estimate - half, estimate, estimate + half)


def blamed(interval: Interval, margin: float | None) -> NDArray[np.bool_]:
    """Runs by looks: whether the alarm was raised at this sample or before."""
    alarm = interval.lower > margin if margin is not None else (interval.lower > 0) | (interval.upper < 0)
    return np.logical_or.accumulate(alarm, axis=1)


def block(case: Case, rng: np.random.Generator, samples: int) -> NDArray[np.float64]:
    """Runs of either method with an alarm by each of LOOKS: 2 x looks."""
    control, candidate = watched(case.control(rng, samples)), watched(case.candidate(rng, samples))
    always = mean_difference(control, candidate, ALPHA, case.bounds)
    fixed = fixed_sample(control, candidate, case.bounds)
    places = [count - 1 for count in LOOKS if count <= samples]
    return np.array([blamed(interval, case.margin)[:, places].sum(axis=0) for interval in (always, fixed)])


def rows(case: Case, runs: int, samples: int) -> list[Row]:
    rng = np.random.default_rng(7)
    percent = sum(block(case, rng, samples) for _ in range(runs // BLOCK)) * 100 / runs
    return [
        Row(f"{case.what}, by {count} an arm, %", ours, peer, ours / peer if peer else 1.0)
        for count, ours, peer in zip(LOOKS, *percent.tolist(), strict=False)
    ]


def main() -> None:
    options = arguments(__doc__ or "")
    runs, samples = (200, 1500) if options.short else (1000, 5000)
    publish("rollout_statistics", [row for case in CASES for row in rows(case, runs, samples)], options.out)


if __name__ == "__main__":
    main()
