"""Control loop of rollouts: judge the measurements, then roll back, pause, take the next step, promote, or wait.

Like the reconciler it relies on the database alone, so that any run may be lost or repeated. Only people move a rollout
without guardrails.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isfinite
from typing import Any

from django.db.models import Count, Sum
from django.utils.timezone import now

from adapterhub.core.actor import system
from adapterhub.core.errors import Conflict, NotAllowed
from registry.experiments.guardrails import Action, Analysis, Arm, Finding, Minute, analysis
from registry.experiments.metrics import METRICS, is_measured
from registry.experiments.rollout_plan import guardrail
from registry.experiments.sample_ratio import Exposure
from registry.models import Rollout, RolloutMinute, RolloutStatus, RolloutUnit

LOOP = system("rollout")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Progress of the present step: seconds left to hold, users in the smaller arm so far, and users required."""

    hold_left_s: int
    samples: int
    needed: int
    approval: bool

    @property
    def is_done(self) -> bool:
        """Return True if the step has lasted and measured enough."""
        return self.hold_left_s <= 0 and self.samples >= self.needed


def judge_all() -> None:
    """Judge and move every serving rollout that has guardrails.

    One that somebody else moved meanwhile, or that may not move, is skipped with a line in the log.
    """
    serving = Rollout.objects.serving().exclude(guardrails=[])
    for rollout in serving.select_related("alias__project", "stable", "candidate"):
        try:
            RolloutMinute.remember_baseline(rollout)
            judge_and_act(rollout, now())
        except (Conflict, NotAllowed) as error:
            log.info("%s does not move: %s", rollout, error)


def judge_and_act(rollout: Rollout, at: datetime) -> Analysis:
    """Judge the rollout and carry out the resulting action. Raises Conflict if it was changed meanwhile."""
    verdict = judge(rollout, at)
    details: dict[str, Any] = {"reason": " ".join(verdict.reasons), "by": LOOP, "evidence": evidence(verdict, rollout)}
    if verdict.action is Action.ROLL_BACK:
        rollout.rollback(**details)
    elif verdict.action is Action.PAUSE:
        rollout.pause(**details, expected_generation=rollout.generation)
    elif rollout.status == RolloutStatus.RUNNING and progress(rollout, at).is_done:
        go_on(rollout, verdict.action, details)
    return verdict


def go_on(rollout: Rollout, action: Action, details: dict[str, Any]) -> None:
    """Leave a completed step.

    Wait for people, advance, or promote; do nothing in the last step without a verdict to promote.

    People are waited for if the step asks for approval, or signatures are missing.
    """
    step, same = rollout.steps[rollout.step], {**details, "expected_generation": rollout.generation}
    is_unsigned = not rollout.is_last_step and not rollout.is_signed
    if (
        step.get("approval")
        or is_unsigned
        or (rollout.is_last_step and action is Action.PROMOTE and rollout.alias.quorum)
    ):
        rollout.wait_for_approval(**same)
    elif not rollout.is_last_step:
        rollout.advance(**same)
    elif action is Action.PROMOTE:
        promote_or_pause(rollout, same)


def promote_or_pause(rollout: Rollout, details: dict[str, Any]) -> None:
    """Promote the candidate, or pause the rollout with the words of the evaluation that speaks against it.

    Raises Conflict for any other reason.
    """
    try:
        rollout.promote(**details)
    except Conflict as error:
        if error.code != "evaluation_objects":
            raise
        reason = f"It is not promoted: {error} Resume it when the version is measured anew, or roll it back."
        rollout.pause(**{**details, "reason": reason})


def judge(rollout: Rollout, at: datetime, measured: list[Minute] | None = None) -> Analysis:
    """Return the analysis of the rollout's measurements so far.

    WAIT if none of its guardrails is measured in this step.

    `measured` are its `minutes`, if the caller has read them already.
    """
    guardrails = [guardrail(raw) for raw in rollout.guardrails if is_measured(raw["metric"], unseen=rollout.shadow > 0)]
    if not guardrails:
        return Analysis(Action.WAIT, ["No guardrail can be judged in this step."], [])
    rows = minutes(rollout) if measured is None else measured
    split = exposures(rollout)
    return analysis(
        rows, guardrails, started=rollout.step_at or at, now=at, exposures=split, in_both=in_both(rollout, split)
    )


def sides(rollout: Rollout) -> dict[str, Arm]:
    """Map the arm names of measurement rows to arms; in a shadow step, those of the unseen pairs of answers."""
    if rollout.shadow:
        return {"mirrored": Arm.CONTROL, "shadow": Arm.CANDIDATE}
    return {arm.value: arm for arm in Arm}


def minutes(rollout: Rollout) -> list[Minute]:
    """Return the rollout's measurements as input of the statistics."""
    arms = sides(rollout)
    return [row.as_minute(arms[row.arm]) for row in rollout.minutes.filter(arm__in=arms)]


def exposures(rollout: Rollout) -> list[Exposure]:
    """Return the users of both arms first served at a weight of up to 50 percent, where both should have equal numbers.

    The list has one entry, or none without such users.
    """
    rows = rollout.units.filter(weight__gt=0, weight__lte=50).values("arm").annotate(count=Count("pk"))
    users = {row["arm"]: row["count"] for row in rows}
    return [Exposure(users.get("control", 0), users.get("candidate", 0), 0.5)] if users else []


def in_both(rollout: Rollout, split: list[Exposure]) -> float:
    """Return the fraction of the candidate's users whom the control served too; 0 without users."""
    users = sum(float(one.candidate) for one in split)
    return RolloutUnit.objects.in_both_arms(rollout).count() / users if users else 0.0


def progress(rollout: Rollout, at: datetime) -> Progress:
    """Return the time and the users that the step still needs."""
    step = rollout.steps[rollout.step]
    end = (rollout.step_at or at) + timedelta(seconds=step.get("hold_s", 0))
    remaining = (end - at).total_seconds()
    return Progress(
        hold_left_s=max(0, int(-(-remaining // 1))),
        samples=samples(rollout),
        needed=step.get("min_samples", 0),
        approval=step.get("approval", False),
    )


def samples(rollout: Rollout) -> int:
    """Return the number of counted users in the smaller arm."""
    arms = [arm for arm, side in sides(rollout).items() if side is not Arm.BASELINE]
    rows = rollout.minutes.filter(arm__in=arms, metric="error_rate")
    users_of_arm: dict[str, int] = dict(rows.order_by().values_list("arm").annotate(users=Sum("count")))
    return min(users_of_arm.get(arm, 0) for arm in arms)


def evidence(result: Analysis, rollout: Rollout) -> dict[str, Any]:
    """Return the analysis as JSON for the REST API and the audit trail."""
    return {
        "action": result.action.value,
        "reasons": list(result.reasons),
        "step": rollout.step,
        "weight": rollout.weight,
        "findings": [finding(one) for one in result.findings],
    }


def finding(result: Finding) -> dict[str, Any]:
    """Return one finding as JSON."""
    rail, interval = result.guardrail, result.interval
    ends = {name: number(getattr(interval, name)) for name in ("lower", "estimate", "upper")}
    key = next(key for key, metric in METRICS.items() if metric.label == rail.metric)
    return {
        "metric": key,
        "name": rail.name,
        "kind": rail.kind.value,
        "margin": rail.margin,
        "unit": rail.unit,
        "verdict": result.verdict.value,
        "difference": ends,
        "reason": result.reason,
    }


def number(value: Any) -> float | None:
    """Return the value rounded to six decimals; None for NaN (not known yet) and for infinity (an open interval)."""
    return round(float(value), 6) if isfinite(float(value)) else None
