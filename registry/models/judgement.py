"""Judgement of a rollout from its measurements: its analysis, its progress, and what a promotion would override.

The result can be stored as JSON, so that the same numbers appear on pages, in the REST API, in the audit trail and in
decisions.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isfinite
from typing import Any

from adapterhub.core.counts import counted
from registry.experiments.guardrails import Action, Analysis, Arm, Finding, Measure, Minute, analysis
from registry.experiments.metrics import METRICS, is_measured
from registry.experiments.rollout_plan import guardrail
from registry.experiments.sample_ratio import Exposure

Rollout = Any  # the model, which imports this module
# Every answer has this metric, so that its counts are those of the users.
USERS = "error_rate"
BY_PEOPLE = "It has no guardrails, so people decide."


@dataclass(frozen=True)
class Progress:
    """Progress of the present step: seconds left to hold, users in the smaller arm so far, and users required.

    `approval` is True if the step waits for a person's approval at its end.
    """

    hold_left_s: int
    samples: int
    needed: int
    approval: bool

    @property
    def missing(self) -> int:
        """Return the number of users that the smaller arm still needs."""
        return max(0, self.needed - self.samples)

    @property
    def is_done(self) -> bool:
        """Return True if the step has lasted long enough and both arms have enough users."""
        return self.hold_left_s <= 0 and not self.missing


@dataclass(frozen=True)
class Numbers:
    """A rollout's measurements, read once.

    `rows` has the guardrails' values by minute, `users` the number of users by arm ("control", "candidate"), and
    `split` the users whom the check of an even split compares. `in_both` is the fraction (0 to 1) of the candidate's
    users whom the control served, too.
    """

    rows: list[Minute]
    users: dict[str, int]
    split: list[Exposure]
    in_both: float

    @classmethod
    def of(cls, rollout: Rollout, *, with_split: bool = True) -> Numbers:
        """Read the numbers of the rollout's present arms from the database.

        In a shadow step these are the arms of mirrored requests. `split` and `in_both` are read only with `with_split`
        and for a rollout with guardrails; otherwise they are empty and 0.
        """
        arms, watched = sides(rollout), {raw["metric"] for raw in rollout.guardrails}
        stored = list(rollout.minutes.filter(arm__in=arms, metric__in=watched | {USERS}))
        rows = [row.as_minute(arms[row.arm]) for row in stored if row.metric in watched]
        users = {side.value: 0 for side in arms.values() if side is not Arm.BASELINE}
        for row in stored:
            if row.metric == USERS and arms[row.arm] is not Arm.BASELINE:
                users[arms[row.arm].value] += row.count
        return cls(rows, users, *(rollout.units.split() if with_split and rollout.guardrails else ([], 0.0)))


def judge(rollout: Rollout, at: datetime, numbers: Numbers | None = None) -> Analysis:
    """Analyse the rollout's measurements so far; WAIT if none of its guardrails is measured in this step.

    `at` is the time now. `numbers` are its measurements, if the caller has read them already.
    """
    guardrails = [guardrail(raw) for raw in rollout.guardrails if is_measured(raw["metric"], unseen=rollout.shadow > 0)]
    if not guardrails:
        return Analysis(Action.WAIT, ["No guardrail can be judged in this step."], [])
    known = numbers or Numbers.of(rollout)
    return analysis(
        known.rows,
        guardrails,
        started=rollout.step_at or at,
        now=at,
        exposures=known.split,
        in_both=known.in_both,
    )


def sides(rollout: Rollout) -> dict[str, Arm]:
    """Map the arm names of measurement rows to arms.

    In a shadow step both arms are the answers to mirrored requests: "mirrored" rows are the control, "shadow" rows the
    candidate.
    """
    if rollout.shadow:
        return {"mirrored": Arm.CONTROL, "shadow": Arm.CANDIDATE}
    return {arm.value: arm for arm in Arm}


def progress(rollout: Rollout, at: datetime, numbers: Numbers | None = None) -> Progress:
    """Return how far the present step is at the time `at`: seconds left to hold, users so far and users required.

    The users so far are those of the smaller arm. `approval` says if the step asks for a person's approval.
    `numbers` are read from the database if not given.
    """
    step = rollout.steps[rollout.step]
    end = (rollout.step_at or at) + timedelta(seconds=step.get("hold_s", 0))
    remaining = (end - at).total_seconds()
    return Progress(
        hold_left_s=max(0, int(-(-remaining // 1))),
        samples=min((numbers or Numbers.of(rollout)).users.values()),
        needed=step.get("min_samples", 0),
        approval=step.get("approval", False),
    )


def judgement(
    rollout: Rollout, at: datetime, result: Analysis | None = None, numbers: Numbers | None = None
) -> dict[str, Any]:
    """Return the analysis of an opened rollout as a dict for JSON: that of `evidence`, with `judged_at` and `unmet`.

    `unmet` are sentences on the conditions that are not met at the time `at`. Without guardrails the action is "wait".
    `result` is the analysis and `numbers` the measurements, if the caller has them already.
    """
    known = numbers or Numbers.of(rollout)
    if result is None and rollout.guardrails:
        result = judge(rollout, at, known)
    verdicts = evidence(result, rollout) if result else {"action": "wait", "reasons": [BY_PEOPLE], "findings": []}
    left = progress(rollout, at, known)
    return {**verdicts, "judged_at": at.isoformat(), "unmet": unmet(rollout, left, verdicts)}


def unmet(rollout: Rollout, left: Progress, verdicts: dict[str, Any]) -> list[str]:
    """Return sentences on the conditions of the plan that are not met: what a promotion by hand would override now.

    `left` is the progress of the present step, `verdicts` the analysis as `evidence` returns it.
    """
    later = rollout.steps[rollout.step + 1 :]
    open_parts = [] if rollout.step_at else ["The candidate has served nobody yet."]
    open_parts += [f"Step {rollout.step + 1} has {left.hold_left_s} s left to hold."] if left.hold_left_s else []
    open_parts += (
        [f"Step {rollout.step + 1} needs {counted(left.missing, 'more user')} in each arm."] if left.missing else []
    )
    shares = ", ".join(f"{step['weight']:g} %" for step in later)
    open_parts += [f"Steps that were not taken: {shares}."] if later else []
    undecided = [one["reason"] for one in verdicts["findings"] if one["verdict"] != "good"]
    warnings = verdicts["reasons"] if verdicts["action"] in (Action.PAUSE, Action.ROLL_BACK) else []
    return open_parts + undecided + [warning for warning in warnings if warning not in undecided]


def evidence(result: Analysis, rollout: Rollout) -> dict[str, Any]:
    """Return the analysis as a dict for JSON, with the rollout's step and weight, for REST and the audit trail."""
    return {
        "action": result.action.value,
        "reasons": list(result.reasons),
        "step": rollout.step,
        "weight": rollout.weight,
        "findings": [finding(one) for one in result.findings],
    }


def finding(result: Finding) -> dict[str, Any]:
    """Return one finding as a dict for JSON; an unknown value and an open end of the interval are None."""
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
        "has_enough": result.has_enough,
        "control": measure(result.control),
        "candidate": measure(result.candidate),
        "users_needed": result.needed,
        "difference": ends,
        "reason": result.reason,
    }


def measure(arm: Measure) -> dict[str, Any]:
    """Return one arm's users and value as a dict for JSON."""
    return {"users": arm.users, "value": number(arm.value)}


def number(value: Any) -> float | None:
    """Return the value rounded to six decimals; None for NaN (not known yet) and for infinity (an open interval)."""
    return round(float(value), 6) if isfinite(float(value)) else None
