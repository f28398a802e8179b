"""The rollouts' control loop: look at the numbers, then roll back, pause, take the next step, promote, or wait.

Like the reconciler it trusts the database alone, so that any run may be lost or repeated. A rollout without guardrails
is moved by people only.
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
from adapterhub.core.errors import Conflict
from registry.experiments.guardrails import Action, Analysis, Arm, Finding, Minute, analysis
from registry.experiments.metrics import METRICS, is_measured
from registry.experiments.rollout_plan import guardrail
from registry.experiments.sample_ratio import Exposure
from registry.models import Rollout, RolloutMinute, RolloutStatus, RolloutUnit

LOOP = system("rollout")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far the present step is: seconds still to hold, users of the arm that has fewer, and how many it needs."""

    hold_left_s: int
    samples: int
    needed: int
    approval: bool

    @property
    def is_done(self) -> bool:
        return self.hold_left_s <= 0 and self.samples >= self.needed


def look_at_all() -> None:
    """One look at every rollout that serves and has guardrails."""
    serving = Rollout.objects.serving().exclude(guardrails=[])
    for rollout in serving.select_related("alias__project", "stable", "candidate"):
        try:
            RolloutMinute.remember_baseline(rollout)
            look(rollout, now())
        except Conflict as error:
            log.info("%s was moved by somebody else: %s", rollout, error)


def look(rollout: Rollout, at: datetime) -> Analysis:
    """Do what the numbers ask for. Raises Conflict when somebody was faster."""
    found = judge(rollout, at)
    told: dict[str, Any] = {"reason": " ".join(found.reasons), "by": LOOP, "evidence": evidence(found, rollout)}
    if found.action is Action.ROLL_BACK:
        rollout.rollback(**told)
    elif found.action is Action.PAUSE:
        rollout.pause(**told, expected_generation=rollout.generation)
    elif rollout.status == RolloutStatus.RUNNING and progress(rollout, at).is_done:
        go_on(rollout, found.action, told)
    return found


def go_on(rollout: Rollout, action: Action, told: dict[str, Any]) -> None:
    """The step has all its time and samples: what comes next. An undecided comparison never promotes."""
    step, same = rollout.steps[rollout.step], {"expected_generation": rollout.generation}
    if step.get("approval") or (rollout.is_last_step and action is Action.PROMOTE and rollout.alias.quorum):
        rollout.wait_for_approval(**told, **same)
    elif not rollout.is_last_step:
        rollout.advance(**told, **same)
    elif action is Action.PROMOTE:
        rollout.promote(**told, **same)


def judge(rollout: Rollout, at: datetime, measured: list[Minute] | None = None) -> Analysis:
    """The verdicts on all that it measured so far, its `minutes`. Raises ValueError without guardrails."""
    guardrails = [guardrail(raw) for raw in rollout.guardrails if is_measured(raw["metric"], unseen=rollout.shadow > 0)]
    if not guardrails:
        return Analysis(Action.WAIT, ["Nothing that this step measures is judged."], [])
    rows = minutes(rollout) if measured is None else measured
    split = exposures(rollout)
    return analysis(rows, guardrails, started=rollout.step_at or at, now=at, exposures=split,
                    in_both=in_both(rollout, split))  # fmt: skip


def sides(rollout: Rollout) -> dict[str, Arm]:
    """Which rows stand for which side: in a shadow step the pairs that nobody saw."""
    if rollout.shadow:
        return {"mirrored": Arm.CONTROL, "shadow": Arm.CANDIDATE}
    return {arm.value: arm for arm in Arm}


def minutes(rollout: Rollout) -> list[Minute]:
    """What the statistics take."""
    arms = sides(rollout)
    return [row.as_minute(arms[row.arm]) for row in rollout.minutes.filter(arm__in=arms)]


def exposures(rollout: Rollout) -> list[Exposure]:
    """Users first met while both arms were of equal size, which they are up to 50 percent."""
    rows = rollout.units.filter(weight__gt=0, weight__lte=50).values("arm").annotate(count=Count("pk"))
    met = {row["arm"]: row["count"] for row in rows}
    return [Exposure(met.get("control", 0), met.get("candidate", 0), 0.5)] if met else []


def in_both(rollout: Rollout, split: list[Exposure]) -> float:
    """The part of the candidate's users who met the control too."""
    met = sum(float(one.candidate) for one in split)
    return RolloutUnit.objects.in_both_arms(rollout).count() / met if met else 0.0


def progress(rollout: Rollout, at: datetime) -> Progress:
    step = rollout.steps[rollout.step]
    end = (rollout.step_at or at) + timedelta(seconds=step.get("hold_s", 0))
    left = (end - at).total_seconds()
    return Progress(
        hold_left_s=max(0, int(-(-left // 1))),
        samples=samples(rollout),
        needed=step.get("min_samples", 0),
        approval=step.get("approval", False),
    )


def samples(rollout: Rollout) -> int:
    """Users whose answers count, of the arm that has fewer."""
    arms = [arm for arm, side in sides(rollout).items() if side is not Arm.BASELINE]
    rows = rollout.minutes.filter(arm__in=arms, metric="error_rate")
    told = rows.order_by().values_list("arm").annotate(users=Sum("count"))
    return min(dict(told).get(arm, 0) for arm in arms)


def evidence(found: Analysis, rollout: Rollout) -> dict[str, Any]:
    """The numbers that decided, as JSON for REST and the audit trail."""
    return {
        "action": found.action.value,
        "reasons": list(found.reasons),
        "step": rollout.step,
        "weight": rollout.weight,
        "findings": [finding(one) for one in found.findings],
    }


def finding(found: Finding) -> dict[str, Any]:
    rail, interval = found.guardrail, found.interval
    ends = {name: number(getattr(interval, name)) for name in ("lower", "estimate", "upper")}
    key = next(key for key, metric in METRICS.items() if metric.label == rail.metric)
    return {"metric": key, "name": rail.name, "kind": rail.kind.value, "margin": rail.margin, "unit": rail.unit,
            "verdict": found.verdict.value, "difference": ends, "reason": found.reason}  # fmt: skip


def number(value: Any) -> float | None:
    """None for what is not known yet, or has no end."""
    return round(float(value), 6) if isfinite(float(value)) else None
