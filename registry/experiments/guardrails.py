"""Judgement of a rollout from its measurements: roll back, pause, wait or promote, with the reasons as sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from math import isfinite, nan

from adapterhub.core.counts import counted
from registry.experiments.confidence_sequences import (
    LEAST,
    UNIT,
    Interval,
    Sample,
    Verdict,
    judged,
    mean_difference,
    mirrored,
)
from registry.experiments.quantiles import Histogram, quantile_difference, quantile_interval, values_needed
from registry.experiments.sample_ratio import Exposure, mismatched

STALE = timedelta(minutes=5)
FOR_LONG = f"for {counted(STALE.seconds // 60, 'minute')}."
OUTAGE = "The control is past the margin too, compared with the time before the rollout: an outage, not the candidate."
SPLIT = (
    "The arms do not get the share of users that their weights say: no comparison can be trusted until the cause is "
    "found."
)
BOTH = "More than one in a hundred users get answers of both arms: a router does not keep them in their arm."
MOST_IN_BOTH = 0.01


class Kind(StrEnum):
    """The consequence of a bad verdict: a guardrail rolls back, a signal pauses, a goal only delays the promotion."""

    GUARDRAIL = "guardrail"
    SIGNAL = "signal"
    GOAL = "goal"


class Action(StrEnum):
    """The actions for a rollout, the most urgent first: roll back, pause, wait, promote."""

    ROLL_BACK = "roll back"
    PAUSE = "pause"
    WAIT = "wait"
    PROMOTE = "promote"


class Arm(StrEnum):
    """The arms of a rollout; BASELINE is the control's traffic from before the rollout."""

    BASELINE = "baseline"
    CONTROL = "control"
    CANDIDATE = "candidate"


@dataclass(frozen=True)
class Guardrail:
    """A limit on how much worse than the control the candidate may be in one metric, given by its label.

    `margin` is in `unit`: "points" for a rate (5 is five points of a hundred), else the values' own unit, such as
    seconds. `level` asks for a quantile (0.95 is p95, from the minutes' histograms, in seconds), None for the mean.
    Raises ValueError for a margin below zero, for a level outside 0 and 1, and for a level with another unit than
    seconds.
    """

    metric: str
    margin: float
    unit: str = "points"
    kind: Kind = Kind.GUARDRAIL
    level: float | None = None
    less_is_worse: bool = False

    def __post_init__(self) -> None:
        if not self.margin >= 0:
            raise ValueError(f"{self.metric}: the margin must be 0 or more, not {self.margin}.")
        if self.level is not None and not 0 < self.level < 1:
            raise ValueError(f"{self.metric}: level must be between 0 and 1, not {self.level}.")
        if self.level is not None and self.unit != "seconds":
            raise ValueError(f"{self.metric}: a quantile is in seconds, not {self.unit}.")

    @property
    def name(self) -> str:
        """Return the metric's name, followed by the percentile if the guardrail has a level."""
        return self.metric if self.level is None else f"{self.metric} p{self.level * 100:g}"

    @property
    def scale(self) -> float:
        """Return the factor from the measured unit to the displayed one: 100 for points, else 1."""
        return 100.0 if self.unit == "points" else 1.0

    def difference(self, before: Values, after: Values, alpha: float) -> Interval:
        """Return the interval of after minus before, with its sign reversed if less is worse: more is always worse.

        It is in the measured unit: a fraction for points. Raises ValueError for an alpha outside 0 and 1.
        """
        if self.level is not None:
            interval = quantile_difference(before.histogram, after.histogram, self.level, alpha)
        else:
            interval = mean_difference(before.sample, after.sample, alpha, UNIT if self.unit == "points" else None)
        return mirrored(interval) if self.less_is_worse else interval

    def measure(self, values: Values) -> Measure:
        """Return the number of users in an arm's values, and their mean, rate or quantile in the values' unit."""
        if self.level is None:
            return Measure(int(values.sample.count), float(values.sample.mean()))
        count = values.histogram.count
        return Measure(count, float(quantile_interval(values.histogram, self.level, 0.05).estimate) if count else nan)

    def users_needed(self, alpha: float) -> int:
        """Return the number of users that each arm needs at least for an interval with two finite ends.

        `alpha` is the guardrail's probability of a false alarm.
        """
        if self.level is not None:
            return values_needed(self.level, alpha / 2)
        return 1 if self.unit == "points" else LEAST

    def judge(self, interval: Interval) -> Verdict:
        """Return the verdict on the interval against the guardrail's margin."""
        return judged(interval, self.margin / self.scale)


@dataclass(frozen=True)
class Values:
    """An arm's measurements: a sample for a mean or a rate, a histogram for a quantile."""

    sample: Sample = field(default_factory=Sample)
    histogram: Histogram = field(default_factory=Histogram)

    def __add__(self, other: Values) -> Values:
        return Values(self.sample + other.sample, self.histogram + other.histogram)


@dataclass(frozen=True)
class Minute:
    """Measurements of one metric, given by its label, of one arm in the minute that begins at `at`."""

    at: datetime
    arm: Arm
    metric: str
    values: Values


@dataclass(frozen=True)
class Measure:
    """One arm's users in a metric and their value in the values' own unit; NaN without users."""

    users: int
    value: float


@dataclass(frozen=True)
class Finding:
    """One guardrail's verdict, its interval in the values' unit (more is worse), the action and the reason.

    `needed` is the number of users that each arm needs for an interval with two finite ends.
    """

    guardrail: Guardrail
    verdict: Verdict
    interval: Interval
    action: Action
    reason: str
    control: Measure
    candidate: Measure
    needed: int

    @property
    def has_enough(self) -> bool:
        """Return True if both arms have the users that are needed, and both ends of the interval are finite."""
        return min(self.control.users, self.candidate.users) >= self.needed and is_closed(self.interval)


@dataclass(frozen=True)
class Analysis:
    """The action to take now; `reasons` are the sentences that decided it, `findings` the results of all guardrails."""

    action: Action
    reasons: Sequence[str]
    findings: Sequence[Finding]


def analysis(
    minutes: Iterable[Minute],
    guardrails: Sequence[Guardrail],
    *,
    started: datetime,
    now: datetime,
    alpha: float = 0.05,
    exposures: Sequence[Exposure] = (),
    in_both: float = 0.0,
) -> Analysis:
    """Judge a rollout that started at `started`, from all its minutes.

    A candidate that is within its margins is called bad, by any guardrail at any look, with probability at most alpha;
    alpha is divided evenly among the guardrails. `exposures` are checked for a wrong split of users, which pauses.
    `in_both` is the fraction of users whom both arms served; above MOST_IN_BOTH it pauses. The most urgent action wins:
    rolling back, then pausing, then waiting. PROMOTE needs every guardrail, signal and goal good. Raises ValueError
    without guardrails and for an alpha outside 0 and 1.
    """
    if not guardrails:
        raise ValueError("A rollout needs at least one guardrail to be judged.")
    rows, since = list(minutes), max(started, now - STALE)
    findings = [finding(guardrail, rows, alpha / len(guardrails), since, now) for guardrail in guardrails]
    actions = [(each.action, each.reason) for each in findings]
    if exposures and mismatched(exposures, alpha):
        actions.append((Action.PAUSE, SPLIT))
    if in_both > MOST_IN_BOTH:
        actions.append((Action.PAUSE, BOTH))
    action = min((action for action, _ in actions), key=list(Action).index)
    return Analysis(action, [reason for its, reason in actions if its is action], findings)


def finding(guardrail: Guardrail, rows: list[Minute], alpha: float, since: datetime, now: datetime) -> Finding:
    """Return the finding of one guardrail: interval, verdict, and the action that follows.

    A bad verdict is not acted on if the control got worse too. Any other verdict is not acted on if an arm has no row
    since `since` and `since` is at least STALE ago. Guardrails and signals then pause, goals wait.
    """
    own_rows = [row for row in rows if row.metric == guardrail.metric]
    control, candidate = measured(own_rows, Arm.CONTROL), measured(own_rows, Arm.CANDIDATE)
    interval = guardrail.difference(control, candidate, alpha)
    verdict = guardrail.judge(interval)
    arms, needed = (guardrail.measure(control), guardrail.measure(candidate)), guardrail.users_needed(alpha)
    action, reason = action_for(guardrail.kind, verdict), words(guardrail, interval, verdict, arms, needed)
    if verdict is Verdict.BAD and outage(guardrail, measured(own_rows, Arm.BASELINE), control, alpha):
        action, reason = action_without_evidence(guardrail.kind), f"{reason} {OUTAGE}"
    elif verdict is not Verdict.BAD and now - since >= STALE and (silent := quiet(own_rows, since)):
        action, reason = (
            action_without_evidence(guardrail.kind),
            f"nothing from the {' and the '.join(silent)} {FOR_LONG}",
        )
    return Finding(guardrail, verdict, interval, action, f"{guardrail.name}: {reason}", *arms, needed)


def measured(rows: list[Minute], arm: Arm) -> Values:
    """Return the sum of the values in all rows of the arm."""
    return sum((row.values for row in rows if row.arm is arm), Values())


def outage(guardrail: Guardrail, baseline: Values, control: Values, alpha: float) -> bool:
    """Return True if the control is worse than its baseline from before the rollout by more than the margin."""
    return guardrail.judge(guardrail.difference(baseline, control, alpha)) is Verdict.BAD


def quiet(rows: list[Minute], since: datetime) -> list[str]:
    """Return the names of the arms, among control and candidate, that have no row since that time."""
    reporting = {row.arm for row in rows if row.at >= since}
    return [arm.value for arm in (Arm.CONTROL, Arm.CANDIDATE) if arm not in reporting]


def action_for(kind: Kind, verdict: Verdict) -> Action:
    """Return the action that follows from a verdict on a guardrail of this kind.

    A bad verdict rolls back (guardrail), pauses (signal) or waits (goal); a good one promotes, and any other waits.
    """
    if verdict is Verdict.BAD:
        return {Kind.GUARDRAIL: Action.ROLL_BACK, Kind.SIGNAL: Action.PAUSE, Kind.GOAL: Action.WAIT}[kind]
    return Action.PROMOTE if verdict is Verdict.GOOD else Action.WAIT


def action_without_evidence(kind: Kind) -> Action:
    """Return the action if a comparison cannot be trusted now: a goal waits, a guardrail or signal pauses."""
    return Action.WAIT if kind is Kind.GOAL else Action.PAUSE


def is_closed(interval: Interval) -> bool:
    """Return True for an interval with two finite ends around a known estimate."""
    return all(isfinite(float(end)) for end in (interval.lower, interval.estimate, interval.upper))


def words(
    guardrail: Guardrail, interval: Interval, verdict: Verdict, arms: tuple[Measure, Measure], needed: int
) -> str:
    """Return a sentence on the verdict with the interval and the margin, for the person on call."""
    low, high = (
        difference_in_words(float(end) * guardrail.scale, guardrail.unit) for end in (interval.lower, interval.upper)
    )
    size = f"{guardrail.margin:g} {guardrail.unit}"
    margin = f"the margin of {size}"
    if verdict is Verdict.BAD:
        return f"the candidate is worse than the control by more than {margin} (from {low} to {high})."
    if verdict is Verdict.GOOD:
        return f"the candidate is within {margin} (at worst {high})."
    if not is_closed(interval):
        users = " and ".join(
            f"{arm.users} in the {name}" for arm, name in zip(arms, ("control", "candidate"), strict=True)
        )
        return f"not enough data yet, users: {users}, and each arm needs {needed}; the margin is {size}."
    return f"not decided yet, the difference lies between {low} and {high}; the margin is {size}."


def difference_in_words(end: float, unit: str) -> str:
    """Return one end of an interval in words, such as "2.5 points worse"; `end` is in the displayed unit."""
    if not isfinite(end):
        return "any number worse" if end > 0 else "any number better"
    return f"{abs(end):.3g} {unit} {'worse' if end >= 0 else 'better'}"
