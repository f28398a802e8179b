"""Charts of a rollout over time: each metric's difference with its interval, both arms' values, and the share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from adapterhub import charts
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from registry.experiments.confidence_sequences import Interval
from registry.experiments.guardrails import Arm, Guardrail, Measure, Minute, Values, is_closed
from registry.models import Rollout
from registry.models.decision import Outcome
from registry.pages.rollout_figures import difference, figure

CHART_POINTS = 12
MOST_MARGINS = 8  # above and below zero: the first intervals are wider than what can be read beside a margin
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Reading:
    """The numbers of one metric of a rollout at one time: both arms, and the difference with its interval."""

    at: datetime
    control: Measure
    candidate: Measure
    interval: Interval


def window(rollout: Rollout, at: datetime, events: Sequence[AuditEvent]) -> tuple[datetime, datetime]:
    """Return (start, end) of the time that a rollout's charts show.

    The start is when the candidate's traffic began, else when the rollout was opened or created. The end is that of the
    measuring beside a control: the promotion, else the rollout's end, else `at`.
    """
    starts = [event.at for event in events if event.tag == Tag.ROLLOUT_STARTED]
    started = min(starts, default=rollout.opened_at or rollout.created_at)
    ends = [each.at for each in rollout.decisions.all() if each.outcome == Outcome.PROMOTED][:1]
    return started, (ends or [rollout.ended_at or at])[0]


def readings(rail: Guardrail, rows: Sequence[Minute], since: datetime, until: datetime, alpha: float) -> list[Reading]:
    """Return the readings of a metric at up to CHART_POINTS of its measured minutes between both times, oldest first.

    Each reading judges all that was measured from `since` to the end of its minute. `alpha` is the error probability of
    the intervals, such as 0.05.
    """
    first = since.replace(second=0, microsecond=0)
    own_rows = [row for row in rows if row.metric == rail.metric and row.arm is not Arm.BASELINE]
    within = sorted((row for row in own_rows if first <= row.at <= until), key=lambda row: row.at)
    times = sorted({row.at for row in within})
    last = len(times) - 1
    ends = sorted({times[last * number // max(1, CHART_POINTS - 1)] for number in range(CHART_POINTS)}) if times else []
    sums, known, waiting = {Arm.CONTROL: Values(), Arm.CANDIDATE: Values()}, [], iter(within)
    row = next(waiting, None)
    for end in ends:
        while row and row.at <= end:
            sums[row.arm] += row.values
            row = next(waiting, None)
        arms = sums[Arm.CONTROL], sums[Arm.CANDIDATE]
        interval = rail.difference(*arms, alpha)
        known.append(Reading(min(end + MINUTE, until), rail.measure(arms[0]), rail.measure(arms[1]), interval))
    return known


def chart(rail: Guardrail, known: Sequence[Reading], since: datetime, until: datetime) -> dict[str, Any] | None:
    """Return the chart of the difference over time and its table of values; None without a measurement.

    The band and the line are drawn only where the interval has two finite ends.
    """
    if not known:
        return None
    scaled = [(one.at, *ends_of(one.interval, rail.scale)) for one in known if is_closed(one.interval)]
    reach = reach_of(rail, [max(abs(low), abs(high)) for _, low, _, high in scaled])
    plot = charts.Plot(since, until, -reach, reach)
    above = [(plot.x(at), plot.y(high)) for at, _, _, high in scaled]
    below = [(plot.x(at), plot.y(low)) for at, low, _, _ in scaled]
    return {
        "band": charts.points([*above, *reversed(below)]) if scaled else "",
        "line": charts.points((plot.x(at), plot.y(middle)) for at, _, middle, _ in scaled),
        "dots": [{"x": plot.x(at), "y": plot.y(middle)} for at, _, middle, _ in scaled],
        "zero": plot.y(0),
        "margin": plot.y(rail.margin),
        "is_cut": any(max(abs(low), abs(high)) > reach for _, low, _, high in scaled),
        "axes": plot.axes(rail.unit),
        "rows": [in_words(rail, one) for one in known],
    }


def ends_of(interval: Interval, scale: float) -> tuple[float, float, float]:
    """Return the lower end, the estimate and the upper end, multiplied by `scale` into the displayed unit."""
    return float(interval.lower) * scale, float(interval.estimate) * scale, float(interval.upper) * scale


def reach_of(rail: Guardrail, extents: Sequence[float]) -> float:
    """Return how far above and below zero the chart reaches, in the displayed unit.

    It shows the margin and the later half of the intervals, as far as MOST_MARGINS times the margin.
    """
    widest = max(extents[len(extents) // 2 :], default=0.0)
    most = MOST_MARGINS * rail.margin if rail.margin else widest
    return max(1.5 * rail.margin, min(widest, most), 1e-3)


def in_words(rail: Guardrail, reading: Reading) -> dict[str, Any]:
    """Return one row of the chart's table: the time, and each arm's users, their values and the difference as text."""
    control, candidate = ({"users": arm.users, "value": arm.value} for arm in (reading.control, reading.candidate))
    low, middle, high = ends_of(reading.interval, 1.0)
    known = {"lower": low, "estimate": middle, "upper": high} if is_closed(reading.interval) else None
    return {
        "at": reading.at,
        "control": figure(control["value"], rail.unit),
        "control_users": control["users"],
        "candidate": figure(candidate["value"], rail.unit),
        "candidate_users": candidate["users"],
        "difference": difference(known, rail.unit) if known else "not enough data",
    }


def ramp(rollout: Rollout, at: datetime, events: Sequence[AuditEvent]) -> dict[str, Any] | None:
    """Return the chart of the candidate's share over time, a stepped line; None for a rollout that was never opened.

    The shares come from the rollout's audit events.
    """
    in_order = sorted(events, key=lambda event: event.pk)
    weights = [(event.at, share(event.after)) for event in in_order if event.after and "weight" in event.after]
    if not weights or rollout.opened_at is None:
        return None
    first = rollout.opened_at
    last = max(rollout.ended_at or at, first + MINUTE)
    plot = charts.Plot(first, last, 0, 100, height=150)
    places: list[charts.Place] = []
    for when, percent in weights:
        places += [(plot.x(when), places[-1][1])] if places else []
        places.append((plot.x(when), plot.y(percent)))
    since_opening = [(when, percent) for when, percent in weights if when >= first]
    return {
        "line": charts.points([*places, (plot.x(last), places[-1][1])]),
        "axes": plot.axes("%"),
        "rows": [{"at": when, "percent": percent} for when, percent in since_opening],
    }


def share(after: dict[str, Any]) -> float:
    """Return the percent of users whom the candidate serves, from the `after` of a rollout's audit event.

    It is 100 once it was promoted, and 0 in a status in which it does not serve.
    """
    fixed = {"promoted": 100.0, "running": after["weight"], "awaiting_approval": after["weight"]}
    return float(fixed.get(after["status"], 0))
