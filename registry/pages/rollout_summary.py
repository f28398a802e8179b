"""Summary of a rollout for an on-call person: verdicts as sentences, charts of differences, and the next action."""

from __future__ import annotations

from datetime import datetime
from math import isfinite
from typing import Any

from adapterhub import charts
from adapterhub.audit.models import AuditEvent
from adapterhub.templatetags.adapterhub import duration
from registry.experiments.guardrails import Action, Analysis, Finding, Guardrail, Kind, Minute, finding
from registry.experiments.rollout_plan import guardrail
from registry.models import Rollout, RolloutStatus
from registry.models.rollout_states import SERVING
from registry.rollouts.controller import Progress, judge, minutes, progress

CHART_POINTS = 12  # points of a chart over time
FRAME = charts.Frame(320, 96, 8)
REACH = 3  # margins above and below zero that a chart shows
BAD = {Kind.GUARDRAIL: "rolls back", Kind.SIGNAL: "pauses", Kind.GOAL: "holds the promotion"}
NEXT = {
    RolloutStatus.DRAFT: "Nothing, until somebody starts it. It can still be changed.",
    RolloutStatus.DISCARDED: "Nothing: it was never started.",
    RolloutStatus.LOADING: "It starts when every healthy replica has loaded the candidate; one refusal ends it.",
    RolloutStatus.PAUSED: "Nothing, until somebody resumes it, promotes it or rolls it back.",
    RolloutStatus.AWAITING_APPROVAL: "Nothing until somebody takes the next step or promotes it. Guardrails still act.",
    RolloutStatus.PROMOTED: "Nothing: it has ended. Rolling back is still possible.",
    RolloutStatus.ROLLED_BACK: "Nothing: it has ended.",
    RolloutStatus.FAILED: "Nothing: not every replica could load the candidate. It got no requests.",
}

URGENT = {
    Action.ROLL_BACK: "It rolls back within seconds: everybody gets the stable version.",
    Action.PAUSE: "It pauses within seconds: everybody gets the stable version until somebody resumes it.",
}
SENTENCES = {
    Action.ROLL_BACK: "The candidate is worse than a guardrail allows.",
    Action.PAUSE: "Somebody has to decide.",
    Action.WAIT: "Not every verdict is good yet.",
    Action.PROMOTE: "Every verdict is good.",
}
UNDECIDED = " A verdict that is not good yet holds only the promotion."


def summary(rollout: Rollout, at: datetime) -> dict[str, Any]:
    """Return the template context of the rollout's page: forecast, verdicts, charts, ramp and plan.

    Charts exist only for metrics that were measured.
    """
    rows = minutes(rollout)
    analysis = judge(rollout, at, rows) if rollout.guardrails and rollout.opened_at else None
    return {
        "next": what_next(rollout, at, analysis),
        "numbers": [SENTENCES[analysis.action], *analysis.reasons] if analysis else [],
        "metrics": [tile(one, rows, len(rollout.guardrails)) for one in analysis.findings] if analysis else [],
        "ramp": ramp(rollout, at) if rollout.opened_at else "",
        "rails": [promise(guardrail(raw)) for raw in rollout.guardrails] if rollout.opened_at is None else [],
        "plan": [
            {**step, "number": number + 1, "now": number == rollout.step and rollout.is_active}
            for number, step in enumerate(rollout.steps)
        ],
    }


def promise(rail: Guardrail) -> str:
    """Describe what a guardrail will do, for a rollout without measurements."""
    return f"{rail.name}: worse by more than {rail.margin:g} {rail.unit} {BAD[rail.kind]}"


def what_next(rollout: Rollout, at: datetime, analysis: Analysis | None) -> str:
    """Return a sentence on what the control loop will do next by itself, and when."""
    if analysis and rollout.status in SERVING and analysis.action in URGENT:
        return URGENT[analysis.action]
    if rollout.waits_for_signature:
        return f"It waits for {rollout.alias.quorum} signature(s) of its plan; the candidate gets no traffic before."
    if rollout.status != RolloutStatus.RUNNING:
        return NEXT[RolloutStatus(rollout.status)]
    if not analysis:
        return "Nothing by itself: it has no guardrails, so people move it."
    when, step = conditions(progress(rollout, at), at), rollout.steps[rollout.step]
    if step.get("approval"):
        forecast = f"It asks for an approval {when}."
    elif rollout.is_last_step:
        forecast = at_the_end(rollout, when, analysis)
    else:
        forecast = f"The share grows to {rollout.steps[rollout.step + 1]['weight']:g} % {when}."
        forecast += UNDECIDED if analysis.action is Action.WAIT else ""
    return f"{forecast} A bad guardrail rolls back at once."


def at_the_end(rollout: Rollout, when: str, analysis: Analysis) -> str:
    """Return a sentence on the end of the last step.

    Only good verdicts end it; a protected alias needs approval as well.
    """
    ends = "It asks for an approval of the promotion" if rollout.alias.quorum else "It is promoted to 100 %"
    if analysis.action is Action.PROMOTE:
        return f"{ends} {when}."
    return f"It stays at {rollout.weight:g} % until every verdict is good. {ends} then, {when}."


def conditions(progress: Progress, at: datetime) -> str:
    """Return a phrase on when the step is complete: the time left and the users still missing."""
    when = f"in {duration(progress.hold_left_s)} at the earliest" if progress.hold_left_s else "within seconds"
    missing = max(0, progress.needed - progress.samples)
    return f"{when}, after {missing} more users in each arm" if missing else when


def tile(finding: Finding, rows: list[Minute], guardrails: int) -> dict[str, Any]:
    """Return one metric's tile: sentence, badge and the chart of its difference over time."""
    own_rows = [row for row in rows if row.metric == finding.guardrail.metric]
    return {
        "found": finding,
        "name": finding.guardrail.name,
        "verdict": finding.verdict.value,
        "kind": finding.guardrail.kind.value,
        "reason": finding.reason,
        "picture": picture(finding.guardrail, own_rows, guardrails),
    }


def picture(rail: Guardrail, rows: list[Minute], guardrails: int) -> dict[str, Any] | None:
    """Return the chart's polygon of the interval and line of the estimate over time; None without measurements."""
    times = sorted({row.at for row in rows})
    if not times:
        return None
    ends = [times[(len(times) - 1) * index // max(1, CHART_POINTS - 1)] for index in range(CHART_POINTS)]
    intervals = [then(rail, rows, end, guardrails).interval for end in ends]
    reach = REACH * max(rail.margin / rail.scale, 1e-3)

    def spot(index: int, value: float) -> charts.Place:
        return FRAME.x(index / (CHART_POINTS - 1)), charts.height_around_zero(FRAME, value, reach)

    above = [spot(index, float(one.upper)) for index, one in enumerate(intervals)]
    below = [spot(index, float(one.lower)) for index, one in enumerate(intervals)]
    estimates = [(index, float(one.estimate)) for index, one in enumerate(intervals)]
    return {
        "band": charts.points([*above, *reversed(below)]),
        "line": charts.points(spot(index, estimate) for index, estimate in estimates if isfinite(estimate)),
        "zero": charts.height_around_zero(FRAME, 0, reach),
        "margin": charts.height_around_zero(FRAME, rail.margin / rail.scale, reach),
        "first": times[0],
        "last": times[-1],
    }


def then(rail: Guardrail, rows: list[Minute], end: datetime, guardrails: int) -> Finding:
    """Return the guardrail's finding as it would have been at the minute `end`."""
    return finding(rail, [row for row in rows if row.at <= end], 0.05 / guardrails, end, end)


def ramp(rollout: Rollout, at: datetime) -> str:
    """Return the candidate's share over time as points of a stepped SVG line, from the audit events; "" without any."""
    events = AuditEvent.objects.about(rollout).order_by("id")
    weights = [(event.at, event.after) for event in events if event.after and "weight" in event.after]
    if not weights:
        return ""
    start, end = weights[0][0], rollout.ended_at or at
    length = max((end - start).total_seconds(), 1)
    corners = [(min(1.0, (when - start).total_seconds() / length), share(after) / 100) for when, after in weights]
    return charts.stairs(FRAME, corners)


def share(after: dict[str, Any]) -> float:
    """Return the percent of users that the candidate serves in the state of an audit event."""
    fixed = {"promoted": 100.0, "running": after["weight"], "awaiting_approval": after["weight"]}
    return float(fixed.get(after["status"], 0))
