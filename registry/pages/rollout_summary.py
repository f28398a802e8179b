"""Summary of a rollout for the person on call: its steps, what the present one waits for, verdicts, next action."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from adapterhub.audit.models import AuditEvent
from adapterhub.core.counts import counted
from adapterhub.templatetags.adapterhub import duration
from registry.experiments.guardrails import Action
from registry.experiments.metrics import is_measured
from registry.experiments.rollout_plan import guardrail
from registry.models import Rollout, RolloutStatus
from registry.models.decision import Outcome, verdicts_of
from registry.models.judgement import Numbers, Progress, progress
from registry.models.rollout_states import SERVING
from registry.pages.rollout_charts import chart, ramp, readings, window
from registry.pages.rollout_figures import promise, verdict_table

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
FROZEN = {
    Action.ROLL_BACK: "The candidate was worse than a guardrail allows.",
    Action.PAUSE: "The comparison needed a person's decision.",
    Action.WAIT: "Not every verdict was good.",
    Action.PROMOTE: "Every verdict was good.",
}
UNDECIDED = " A verdict that is not good yet holds only the promotion."


def summary(rollout: Rollout, at: datetime, events: Sequence[AuditEvent] | None = None) -> dict[str, Any]:
    """Return the rollout's part of its page's context: plan, verdicts, charts, and what it will do next.

    The verdicts of a rollout that is paused or has ended are those that were frozen with that decision. Charts exist
    for measured metrics only. `events` are its audit events, if the caller has read them already.
    """
    events = AuditEvent.objects.about(rollout).defer("canonical").fitting() if events is None else events
    numbers = Numbers.of(rollout)
    verdicts = verdicts_of(rollout, at, numbers)
    is_live = bool(verdicts) and rollout.status in (RolloutStatus.LOADING, *SERVING)
    action = Action(verdicts["action"]) if verdicts and rollout.guardrails else None
    sentences = SENTENCES if is_live else FROZEN
    return {
        "next": what_next(rollout, progress(rollout, at, numbers), action),
        "numbers": [sentences[action], *verdicts["reasons"]] if action and verdicts else [],
        "verdicts": verdict_table(rollout, verdicts) if verdicts else None,
        "is_live": is_live,
        "charts": charts_of(rollout, numbers, *window(rollout, at, events))
        if verdicts and verdicts["findings"]
        else [],
        "ramp": ramp(rollout, at, events),
        "rails": [promise(guardrail(raw)) for raw in rollout.guardrails] if rollout.opened_at is None else [],
        "plan": stepper(rollout, conditions_of(rollout, at, numbers, verdicts)),
    }


def charts_of(rollout: Rollout, numbers: Numbers, since: datetime, until: datetime) -> list[dict[str, Any]]:
    """Return {name, chart} for each guardrail measured in this step; the chart is None without measurements."""
    rails = [guardrail(raw) for raw in rollout.guardrails if is_measured(raw["metric"], unseen=rollout.shadow > 0)]
    alpha = 0.05 / max(1, len(rails))
    return [
        {"name": rail.name, "chart": chart(rail, readings(rail, numbers.rows, since, until, alpha), since, until)}
        for rail in rails
    ]


def stepper(rollout: Rollout, conditions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the plan's steps and the promotion, each with its `state`; the present step also has the conditions.

    The states are those of `state_of`, the conditions those of `conditions_of`.
    """
    steps = [
        {**step, "number": number + 1, "state": state_of(rollout, number)} for number, step in enumerate(rollout.steps)
    ]
    for step in steps:
        step["waits"] = conditions if step["state"] == "now" else []
    was_promoted = any(each.outcome == Outcome.PROMOTED for each in rollout.decisions.all())
    is_done = was_promoted or rollout.status == RolloutStatus.PROMOTED
    state = "done" if is_done else "never" if rollout.ended_at else "later"
    return [*steps, {"is_promotion": True, "weight": 100, "state": state}]


def state_of(rollout: Rollout, number: int) -> str:
    """Return the state of the step `number`, counted from 0.

    It is done, now, later, ended (the rollout ended in it) or never (the rollout ended before it).
    """
    if rollout.opened_at is None or number > rollout.step:
        return "never" if rollout.ended_at else "later"
    if number < rollout.step:
        return "done"
    return "now" if rollout.is_active else "ended"


def conditions_of(
    rollout: Rollout, at: datetime, numbers: Numbers, verdicts: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """Return what the present step waits for: {text, met} for each condition, in words and True if it is met.

    Empty if the rollout is not active.
    """
    if not rollout.is_active:
        return []
    signature = {"text": f"{signatures(rollout)} of the plan", "met": rollout.is_signed}
    signed = [signature] if rollout.alias.quorum else []
    if rollout.status == RolloutStatus.LOADING:
        return [*loading(rollout), *signed]
    if rollout.status == RolloutStatus.PAUSED:
        return [{"text": f"somebody resumes it, promotes it or rolls it back: {rollout.status_reason}", "met": False}]
    step, left = rollout.steps[rollout.step], progress(rollout, at, numbers)
    waits = signed
    if hold := step.get("hold_s"):
        text = f"{duration(hold)} of measuring"
        waits = [*waits, {"text": f"{text}, {duration(left.hold_left_s)} left" if left.hold_left_s else text}]
        waits[-1]["met"] = not left.hold_left_s
    if left.needed:
        users = ", ".join(f"{arm} {count} of {left.needed}" for arm, count in numbers.users.items())
        waits = [*waits, {"text": f"users: {users}", "met": not left.missing}]
    if not rollout.guardrails or step.get("approval") or rollout.status == RolloutStatus.AWAITING_APPROVAL:
        return [*waits, {"text": "a person who moves it on", "met": False}]
    return [*waits, *verdict_conditions(verdicts)] if rollout.is_last_step else waits


def signatures(rollout: Rollout) -> str:
    """Return how many signatures the alias' policy asks for, in words: "2 signatures"."""
    return f"{rollout.alias.quorum} signature{'' if rollout.alias.quorum == 1 else 's'}"


def verdict_conditions(verdicts: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the verdicts that the promotion waits for, as conditions."""
    findings = verdicts["findings"] if verdicts else []
    return [{"text": f"a good verdict: {one['name']}", "met": one["verdict"] == "good"} for one in findings]


def loading(rollout: Rollout) -> list[dict[str, Any]]:
    """Return the loading of the candidate on all healthy replicas as the only condition."""
    healthy = [replica for replica in rollout.alias.cluster.replicas.all() if replica.is_healthy]
    holding = [replica for replica in healthy if rollout.candidate.served_name in replica.loaded]
    text = f"every healthy replica loads the candidate: {len(holding)} of {len(healthy)}"
    return [{"text": text, "met": bool(healthy) and len(holding) == len(healthy)}]


def what_next(rollout: Rollout, left: Progress, action: Action | None) -> str:
    """Return a sentence that says what the control loop will do next by itself, and when."""
    if action in URGENT and rollout.status in SERVING:
        return URGENT[action]
    if rollout.waits_for_signature:
        return f"It waits for {signatures(rollout)} of its plan; the candidate gets no traffic before."
    if rollout.status != RolloutStatus.RUNNING:
        return NEXT[RolloutStatus(rollout.status)]
    if not action:
        return "Nothing by itself: it has no guardrails, so people move it."
    if rollout.steps[rollout.step].get("approval"):
        forecast = f"It asks for an approval {when(left)}."
    elif rollout.is_last_step:
        forecast = at_the_end(rollout, left, action)
    else:
        forecast = f"The share grows to {rollout.steps[rollout.step + 1]['weight']:g} % {when(left)}."
        forecast += UNDECIDED if action is Action.WAIT else ""
    return f"{forecast} A bad guardrail rolls back at once."


def at_the_end(rollout: Rollout, left: Progress, action: Action) -> str:
    """Return a sentence on the end of the last step, which only good verdicts bring.

    A protected alias needs an approval as well.
    """
    ends = "It asks for an approval of the promotion" if rollout.alias.quorum else "It is promoted to 100 %"
    if action is Action.PROMOTE:
        return f"{ends} {when(left)}."
    rest = "then" if left.is_done else f"then, {when(left)}"
    return f"It stays at {rollout.weight:g} % until every verdict is good. {ends} {rest}."


def when(left: Progress) -> str:
    """Return a phrase that says when the step will be complete: the time left and the users still missing."""
    users = f"after {counted(left.missing, 'more user')} in each arm" if left.missing else ""
    if not left.hold_left_s:
        return users or "within seconds"
    time = f"in {duration(left.hold_left_s)} at the earliest"
    return f"{time}, {users}" if users else time
