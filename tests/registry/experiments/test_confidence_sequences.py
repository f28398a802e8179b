"""Always-valid intervals: known values, edges, and what they promise under continuous looking."""

from __future__ import annotations

from math import exp, inf, isnan, log, sqrt

import numpy as np
import pytest

from registry.experiments.confidence_sequences import (
    Interval,
    Sample,
    Verdict,
    boundary,
    control_moved,
    judged,
    mean_difference,
    mirrored,
    proportion_difference,
)
from registry.experiments.quantiles import EDGES, Histogram, quantile_difference, quantile_interval, rank_limits
from registry.experiments.sample_ratio import Exposure, mismatch_evidence, mismatched

ALPHA = 0.05
RUNS = 200
GROWING = np.arange(1, 1501, dtype=float)


def failing(rate: float, seed: int) -> Sample:
    """RUNS streams of failures, seen at every sample."""
    failures = np.cumsum(np.random.default_rng(seed).random((RUNS, len(GROWING))) < rate, axis=1)
    return Sample.of_failures(GROWING, failures)


def test_the_boundary_is_the_normal_mixture() -> None:
    # prior = 1000 / (-W(-0.0025 / e) - 1) = 121.7735, worked by hand
    assert boundary(1000.0, ALPHA) == pytest.approx(sqrt(1121.7735 * log(1121.7735 / (121.7735 * 0.0025))), rel=1e-5)


def test_a_doubled_error_rate_has_the_interval_of_the_formula() -> None:
    interval = proportion_difference(Sample.of_failures(1500, 75), Sample.of_failures(1500, 150), ALPHA)
    spread = 76 / 1502 - (76 / 1502) ** 2 + 151 / 1502 - (151 / 1502) ** 2
    half = sqrt(spread) / 1500 * boundary(1500.0, ALPHA)
    assert (interval.lower, interval.estimate, interval.upper) == pytest.approx((0.05 - half, 0.05, 0.05 + half))


@pytest.mark.parametrize("arms", [((0, 0), (0, 0)), ((100, 3), (0, 0)), ((0, 0), (100, 100))])
def test_an_arm_without_samples_says_nothing(arms: tuple[tuple[int, int], tuple[int, int]]) -> None:
    interval = proportion_difference(*(Sample.of_failures(*arm) for arm in arms), ALPHA)
    assert (interval.lower, interval.upper) == (-1, 1)
    assert isnan(interval.estimate)
    assert judged(interval, 0.01) is Verdict.INCONCLUSIVE


def test_all_failing_is_bad_and_none_failing_is_no_proof_at_once() -> None:
    none, every = Sample.of_failures(60, 0), Sample.of_failures(60, 60)
    assert judged(proportion_difference(none, every, ALPHA), 0.01) is Verdict.BAD
    assert judged(proportion_difference(none, none, ALPHA), 0.01) is Verdict.INCONCLUSIVE
    assert judged(proportion_difference(every, every, ALPHA), 0.01) is Verdict.INCONCLUSIVE


def test_minutes_add_up() -> None:
    values = np.random.default_rng(0).exponential(2.0, 300)
    minutes = [Sample(100, part.sum(), (part**2).sum()) for part in np.split(values, 3)]
    joined = sum(minutes, Sample())
    assert joined.mean() == pytest.approx(values.mean())
    assert joined.variance(None) == pytest.approx(values.var())


def test_a_mean_without_bounds_waits_for_its_spread() -> None:
    early, constant = Sample(29, 29.0, 40.0), Sample(500, 500.0, 500.0)
    for arms in ((early, early), (constant, constant)):
        interval = mean_difference(*arms, ALPHA)
        assert (interval.lower, interval.upper) == (-inf, inf)


@pytest.mark.parametrize(
    ("lower", "upper", "verdict"),
    [(0.011, 0.03, "bad"), (0.009, 0.03, "inconclusive"), (-0.02, 0.009, "good"), (-0.02, 0.011, "inconclusive")],
)
def test_a_verdict_needs_the_whole_interval(lower: float, upper: float, verdict: str) -> None:
    assert judged(Interval(lower, 0.0, upper), 0.01) == verdict


def test_less_can_be_worse() -> None:
    assert judged(mirrored(Interval(-0.3, -0.2, -0.1)), 0.05) is Verdict.BAD


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: judged(Interval(0, 0, 0), -1), "The margin must be 0 or more, not -1"),
        (lambda: boundary(10, 1.0), "alpha must be between 0 and 1, not 1.0"),
        (lambda: Sample.of_failures(3, 4), "failures must be between 0 and the count 3, not 4"),
        (lambda: quantile_interval(Histogram(), 1.0, ALPHA), "level must be between 0 and 1, not 1.0"),
        (lambda: Histogram(np.zeros(3, dtype=int)), "A histogram has 285 counts"),
        (lambda: mismatched([Exposure(1, 1, 1.5)], ALPHA), "share must be between 0 and 1, not 1.5"),
    ],
)
def test_bad_input_is_named(call: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()  # type: ignore[operator]


def test_an_outage_moves_the_control_too() -> None:
    before = Sample.of_failures(3000, 30)
    assert control_moved(before, Sample.of_failures(500, 150), 0.02, ALPHA, bounds=(0, 1))
    assert not control_moved(before, Sample.of_failures(500, 6), 0.02, ALPHA, bounds=(0, 1))


@pytest.mark.parametrize("rate", [0.001, 0.05, 0.5])
def test_equal_arms_raise_no_more_false_alarms_than_alpha(rate: float) -> None:
    interval = proportion_difference(failing(rate, 1), failing(rate, 2), ALPHA)
    assert np.mean(np.any((interval.lower > 0) | (interval.upper < 0), axis=1)) <= ALPHA


def of_users(answers: int, seed: int, users: int = 100) -> Sample:
    """RUNS streams of users who come one after the other, of whom some fail often; so many answers of each count."""
    draws = np.random.default_rng(seed)
    failing = draws.beta(0.1, 0.9, (RUNS, users, 1))
    failures = draws.random((RUNS, users, answers)) < failing
    return Sample.of_failures(np.arange(1.0, users * answers + 1), np.cumsum(failures.reshape(RUNS, -1), axis=1))


def test_users_count_once_since_their_answers_are_alike() -> None:
    """Equal arms of a few users who ask often: each answer by itself raises false alarms, one of each user none."""
    alarms = {}
    for answers in (1, 30):
        interval = proportion_difference(of_users(answers, 4), of_users(answers, 5), ALPHA)
        alarms[answers] = np.mean(np.any((interval.lower > 0) | (interval.upper < 0), axis=1))
    assert alarms[1] <= ALPHA
    assert alarms[30] > 0.2


def test_equal_skewed_latencies_raise_no_more_false_alarms_than_alpha() -> None:
    draws = np.random.default_rng(3).lognormal(0, 1, (2, RUNS, len(GROWING)))
    arms = [Sample(GROWING, np.cumsum(arm, axis=1), np.cumsum(arm**2, axis=1)) for arm in draws]
    interval = mean_difference(*arms, ALPHA)
    assert np.mean(np.any((interval.lower > 0) | (interval.upper < 0), axis=1)) <= ALPHA


def test_ten_percent_errors_against_five_are_found_by_1500_samples() -> None:
    interval = proportion_difference(failing(0.05, 4), failing(0.10, 5), ALPHA)
    assert np.mean(np.any(interval.lower > 0.01, axis=1)) >= 0.8


def test_a_quantile_lies_between_ranks() -> None:
    assert rank_limits(31, 0.5, ALPHA / 2)[0] == 0
    low, high = rank_limits(32, 0.5, ALPHA / 2)
    assert (low, high) == (1, 32)
    assert rank_limits(172, 0.95, ALPHA / 2)[1] is None
    assert rank_limits(173, 0.95, ALPHA / 2)[1] == 173


def test_a_slower_tail_is_seen_in_p95_and_an_empty_arm_says_nothing() -> None:
    rng = np.random.default_rng(6)
    slow, usual = (Histogram.of(rng.lognormal(mean, 0.5, 3000)) for mean in (0.5, 0.0))
    interval = quantile_difference(usual, slow, 0.95, ALPHA)
    assert 0 < interval.lower < exp(0.5 + 0.8224) - exp(0.8224) < interval.upper
    nothing = quantile_difference(usual, Histogram(), 0.95, ALPHA)
    assert (nothing.lower < 0, nothing.upper) == (True, inf)
    assert isnan(nothing.estimate)


def test_values_off_the_scale_stay_in_the_outer_bins() -> None:
    low = quantile_interval(Histogram.of([0.0] * 500), 0.5, ALPHA)
    high = quantile_interval(Histogram.of([1e9] * 500), 0.5, ALPHA)
    assert (low.lower, low.upper) == (0.0, EDGES[0])
    assert (high.lower, high.upper) == (EDGES[-1], inf)


def test_a_right_quantile_interval_never_leaves_the_truth_more_often_than_alpha() -> None:
    below = np.cumsum(np.random.default_rng(7).random((RUNS, 1500)) < 0.95, axis=1)
    limits = [(count, rank_limits(count, 0.95, ALPHA)) for count in range(50, 1501, 50)]
    out = [(below[:, n - 1] < low) | (below[:, n - 1] >= (high or inf)) for n, (low, high) in limits]
    assert np.mean(np.any(out, axis=0)) <= ALPHA


def test_a_wrong_split_is_found_over_changing_weights_and_a_right_one_is_not() -> None:
    ramp = [Exposure(900, 100, 0.1), Exposure(0, 40, 1.0)]
    assert not mismatched([*ramp, Exposure(5040, 4960, 0.5)], ALPHA)
    assert mismatched([*ramp, Exposure(5300, 4700, 0.5)], ALPHA)
    assert not mismatched([], ALPHA)


def test_a_right_split_watched_at_every_unit_is_blamed_no_more_often_than_alpha() -> None:
    candidates = np.cumsum(np.random.default_rng(8).random((RUNS, 4000)) < 0.25, axis=1)
    units = np.arange(1, 4001)
    evidence = mismatch_evidence([Exposure(units - candidates, candidates, 0.25)], ALPHA)
    assert np.mean(np.any(evidence >= -log(ALPHA), axis=1)) <= ALPHA
