"""A rollout's verdicts as figures and words for the pages, from the JSON in which they are stored."""

from __future__ import annotations

from datetime import datetime
from math import isfinite
from typing import Any

from registry.experiments.guardrails import Guardrail, Kind
from registry.models import Rollout

BAD = {Kind.GUARDRAIL: "rolls back", Kind.SIGNAL: "pauses", Kind.GOAL: "holds the promotion"}
MINUS = "\N{MINUS SIGN}"


def figure(value: float | None, unit: str) -> str:
    """Return an arm's value with its unit as text; "none" for None, NaN and infinity.

    With the unit "points" the value is a rate from 0 to 1 and is shown in percent.
    """
    if value is None or not isfinite(value):
        return "none"
    return f"{value * 100:.3g} %" if unit == "points" else f"{value:.4g} {'s' if unit == 'seconds' else unit}"


def signed(value: float | None, unit: str) -> str:
    """Return one end of a difference as text with its sign and without its unit; "open" for None.

    With the unit "points" it is a difference of rates (0 to 1) and is multiplied by 100.
    """
    if value is None:
        return "open"
    number = value * 100 if unit == "points" else value
    return f"{MINUS if number < 0 else '+'}{abs(number):.3g}"


def difference(ends: dict[str, Any], unit: str) -> str:
    """Return the difference with its interval as text: `+0.4 (-1.2 to +2.1) points`. More is worse.

    `ends` is {lower, estimate, upper}, in which None is an open end, or an estimate that is not known.
    """
    low, middle, high = (signed(ends[name], unit) for name in ("lower", "estimate", "upper"))
    return f"{middle} ({low} to {high}) {unit}"


def promise(rail: Guardrail) -> str:
    """Return a phrase that says what a guardrail will do, for a rollout without measurements."""
    return f"{rail.name}: worse by more than {rail.margin:g} {rail.unit} {BAD[rail.kind]}"


def verdict_table(rollout: Rollout, verdicts: dict[str, Any]) -> dict[str, Any]:
    """Return a rollout's verdicts for a template: `rows` of figures, `reasons`, `unmet` conditions, and `judged_at`.

    `verdicts` are those that `judgement` returned, now or for a stored decision. `judged_at` is the time of their
    numbers, None in older records.
    """
    needed = rollout.steps[verdicts.get("step", rollout.step)].get("min_samples", 0)
    judged_at = verdicts.get("judged_at")
    return {
        "judged_at": datetime.fromisoformat(judged_at) if judged_at else None,
        "reasons": verdicts["reasons"],
        "unmet": verdicts.get("unmet", []),
        "rows": [verdict_row(finding, needed) for finding in verdicts["findings"]],
    }


def verdict_row(finding: dict[str, Any], needed: int) -> dict[str, Any]:
    """Return one metric's row from a stored finding, with the figures as text.

    `needed` is the number of users that the step asks for. A record from before the arms' values were stored gives
    "none" as their figures.
    """
    unit, arms = (
        finding["unit"],
        [finding.get(arm) or {"users": None, "value": None} for arm in ("control", "candidate")],
    )
    has_enough = finding.get("has_enough", finding["difference"]["estimate"] is not None)
    least = max(needed, finding.get("users_needed", 0))
    is_open = finding["verdict"] == "inconclusive" and (
        not has_enough or min(arm["users"] or 0 for arm in arms) < least
    )
    return {
        "name": finding["name"],
        "kind": finding["kind"],
        "consequence": BAD[Kind(finding["kind"])],
        "verdict": "not enough data" if is_open else finding["verdict"],
        "control": {**arms[0], "figure": figure(arms[0]["value"], unit)},
        "candidate": {**arms[1], "figure": figure(arms[1]["value"], unit)},
        "needed": least,
        "difference": difference(finding["difference"], unit) if has_enough else "not enough data",
        "margin": f"{finding['margin']:g} {unit}",
        "reason": finding["reason"],
    }
